// Every dial of the load scripts, once: `k6 run -e NAME=VALUE`. dials.json holds name, default, bounds and words; the
// tests, `python -m fleet.load` and README read the same file.
// Knows: how a value is checked. Does not know: what it does.

export const TABLE = JSON.parse(open('../dials.json'));

const DURATION = /^(\d+(\.\d+)?(h|m|s|ms))+$/;
const UNIT_S = { h: 3600, m: 60, s: 1, ms: 0.001 };

/** Seconds in a duration such as 90s, 1h30m. */
export function seconds(text) {
  return [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s)/g)].reduce((sum, [, count, unit]) => sum + count * UNIT_S[unit], 0);
}

function refuse(name, text, why) {
  throw new Error(`-e ${name}=${text}: ${why}`);
}

function number(name, text, dial) {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) refuse(name, text, 'is not a number');
  if (dial.kind === 'int' && !Number.isInteger(value)) refuse(name, text, 'is not a whole number');
  if (value < dial.least || value > dial.most) refuse(name, text, `must be ${dial.least} to ${dial.most}`);
  return value;
}

function read(name, text, dial) {
  if (dial.kind === 'int' || dial.kind === 'float') return number(name, text, dial);
  if (dial.kind === 'choice' && !dial.choices.includes(text)) refuse(name, text, `must be one of ${dial.choices.join(', ')}`);
  const lasts = dial.kind === 'duration';
  if (lasts && !(DURATION.test(text) && seconds(text) > 0)) refuse(name, text, 'must be a time such as 90s or 5m');
  if (dial.kind === 'url' && !/^http:\/\/[^/\s]+[^\s]*$/.test(text)) refuse(name, text, 'must begin with http://');
  if (dial.kind === 'name' && !/^[A-Za-z0-9._-]{0,60}$/.test(text)) refuse(name, text, 'must be of letters, digits, . _ and -');
  return dial.kind === 'url' ? text.replace(/\/+$/, '') : text;
}

/** The value of every dial: given, else the scenario's default, else the dial's. Throws for one that has no effect. */
export function dials(given) {
  const scenario = read('SCENARIO', given.SCENARIO || TABLE.SCENARIO.default, TABLE.SCENARIO);
  const values = {};
  for (const [name, dial] of Object.entries(TABLE)) {
    const text = given[name] === undefined ? '' : given[name];
    const idle = dial.scenarios && !dial.scenarios.includes(scenario);
    if (text !== '' && idle) refuse(name, text, `has no effect in ${scenario}; only in ${dial.scenarios.join(', ')}`);
    const own = (dial.by_scenario || {})[scenario];
    if (!idle) values[name] = read(name, text === '' ? String(own === undefined ? dial.default : own) : text, dial);
  }
  return values;
}
