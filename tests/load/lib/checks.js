// Is an answer right? Each question gives '' or what is wrong.
// Knows: what the contract promises about an answer. Does not know: load, metrics.
// The loops name every column: a loop over names would be five times slower, and the generator's time is measured too.

import { check } from 'k6';

const REFUSALS = [429, 503, 504]; // too much waiting, no worker ready, deadline passed: said in order, so not a fault
const COME_BACK = [429, 503]; // these say when
const PROBLEM = 'application/problem+json';
const CACHE_RESULTS = ['hit', 'miss', 'coalesced', 'bypass'];

function fault(asked, id, response, answer) {
  const named = [answer.request_id, response.headers['X-Request-Id']];
  if (named.some((name) => name !== id)) return `request id is ${named} in body and header, asked was ${id}`;
  if (!asked.batch) return '';
  if (!Array.isArray(answer.items)) return 'a batch without items';
  return answer.items.length === asked.expected.length ? '' : `${answer.items.length} items for ${asked.expected.length} series`;
}

function echoed(expected, item) {
  return item.series_id === expected.id ? '' : `series_id is ${item.series_id}, asked was ${expected.id}`;
}

function continued(expected, rows) {
  if (!Array.isArray(rows)) return 'no candles';
  if (rows.length !== expected.stamps.length) return `${rows.length} candles, horizon is ${expected.stamps.length}`;
  for (let k = 0; k < rows.length; k++) {
    if (rows[k].timestamp !== expected.stamps[k]) return `candle ${k} is of ${rows[k].timestamp}, not ${expected.stamps[k]}`;
  }
  return '';
}

const positive = (value) => Number.isFinite(value) && value > 0;

function plausible(rows) {
  for (let k = 0; k < rows.length; k++) {
    const row = rows[k];
    const prices = positive(row.open) && positive(row.high) && positive(row.low) && positive(row.close);
    if (!prices || !Number.isFinite(row.volume) || !Number.isFinite(row.amount)) return `candle ${k} is ${JSON.stringify(row)}`;
  }
  return '';
}

const below = (low, high) =>
  low.open <= high.open && low.high <= high.high && low.low <= high.low &&
  low.close <= high.close && low.volume <= high.volume && low.amount <= high.amount;

function ordered(expected, item) {
  const found = item.quantiles || {};
  const cuts = expected.quantiles.map((name) => found[name]);
  for (let q = 0; q < cuts.length; q++) {
    const wrong = continued(expected, cuts[q]) || plausible(cuts[q]);
    if (wrong) return `quantile ${expected.quantiles[q]}: ${wrong}`;
    const crossed = q === 0 ? -1 : cuts[q].findIndex((row, k) => !below(cuts[q - 1][k], row));
    if (crossed >= 0) return `quantile ${expected.quantiles[q]} is below the one before at candle ${crossed}`;
  }
  return '';
}

function timed(answer) {
  return answer.timings && Number.isFinite(answer.timings.total) ? '' : 'no timings';
}

function told(response) {
  const said = response.headers['X-Cache'] || '';
  return said.split(', ').every((word) => CACHE_RESULTS.includes(word)) ? '' : `X-Cache is ${said}`;
}

/** The first fault of `question` over all pairs of expected and item. An answer of a shape that breaks it is at fault too. */
function first(pairs, question) {
  try {
    return pairs.map(([expected, item]) => question(expected, item)).find((each) => each !== '') || '';
  } catch (error) {
    return String(error);
  }
}

function refusal(response, id) {
  const kind = (response.headers['Content-Type'] || '').split(';')[0];
  if (kind !== PROBLEM) return `a ${response.status} of type ${kind}`;
  const after = response.headers['Retry-After'];
  if (COME_BACK.includes(response.status) && !(Number(after) >= 1)) return `Retry-After is ${after}`;
  const problem = parse(response);
  if (problem === null) return 'not JSON';
  return problem.status === response.status && problem.request_id === id ? '' : `problem is ${response.body}`;
}

function parse(response) {
  try {
    return response.json();
  } catch {
    return null;
  }
}

/** What is wrong with a 200, by question. An item that the server refused (an error in its place) is in `refused`. */
function judgeAnswer(asked, id, response, answer) {
  if (answer === null || typeof answer !== 'object') return { faults: { 'the answer is JSON': 'not a document' }, refused: 0 };
  const whole = fault(asked, id, response, answer);
  const items = asked.batch && !whole ? answer.items : [answer];
  const pairs = whole ? [] : items.map((item, k) => [asked.expected[k], item]).filter(([, item]) => !isRefusal(item));
  const faults = {
    'the answer is JSON': '',
    'ids are echoed': whole || first(pairs, echoed),
    'candles continue the series': first(pairs, (expected, item) => continued(expected, item.prediction)),
    'numbers are finite, prices positive': first(pairs, (_, item) => plausible(item.prediction)),
    'quantiles are ordered': first(pairs, ordered),
    'stages are timed': timed(answer),
    'the cache says what it did': told(response),
  };
  return { faults, refused: whole ? 0 : items.length - pairs.length };
}

function isRefusal(item) {
  return item !== null && item.error !== undefined && REFUSALS.includes(item.error.status);
}

/**
 * Judge one response and count the checks. Gives {outcome, answer, refused}: outcome is right, refused (in order, or part of
 * a batch was) or failed; answer the document of a 200; refused the number of series refused in a 200.
 */
export function judge(asked, id, response) {
  const expected = response.status === 200 || REFUSALS.includes(response.status);
  const faults = { 'the status is in the contract': expected ? '' : `status ${response.status} ${response.error}` };
  let answer = null;
  let refused = 0;
  if (response.status === 200) {
    answer = parse(response);
    const judged = judgeAnswer(asked, id, response, answer);
    Object.assign(faults, judged.faults);
    refused = judged.refused;
  } else if (expected) {
    faults['a refusal says why and until when'] = refusal(response, id);
  }
  const right = report(faults, id);
  const outcome = !right ? 'failed' : response.status !== 200 || refused ? 'refused' : 'right';
  return { outcome, answer: right ? answer : null, refused };
}

let complained = false; // each user says once what is wrong: enough to know, not enough to fill a disk

function report(faults, id) {
  const wrong = Object.entries(faults).filter(([, why]) => why !== '');
  if (wrong.length && !complained) {
    complained = true;
    console.error(`${id}: not so: ${wrong.map(([question, why]) => `${question} (${why.slice(0, 300)})`).join('; ')}`);
  }
  return check(faults, Object.fromEntries(Object.keys(faults).map((question) => [question, (found) => found[question] === ''])));
}

const answers = new Map(); // of this user: what was asked → the numbers it got
const numbers = (row) => [row.open, row.high, row.low, row.close, row.volume, row.amount];

/** Whether each series, by a name that stands for all that was asked, got the same numbers as before. */
export function checkRepeated(names, items, id) {
  const changed = names.filter((name, k) => {
    if (isRefusal(items[k])) return false;
    const found = items[k].prediction.flatMap(numbers).join();
    const before = answers.get(name);
    answers.set(name, found);
    return before !== undefined && before !== found;
  });
  return report({ 'the same request gets the same answer': changed.join() }, id);
}
