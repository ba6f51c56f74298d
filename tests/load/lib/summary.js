// The end of a run, as text for people and JSON for programs.
// Knows: k6's summary data. Does not know: how it was measured.

import { STAGES } from './metrics.js';
import { parts } from './scenarios.js';
import { seconds } from './dials.js';

const COLUMNS = ['med', 'p(90)', 'p(95)', 'p(99)', 'max'];
const KNEE = 0.95; // goodput

const fixed = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : '–');
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(2)} %` : '–');
const line = (name, ...cells) => `  ${name.padEnd(38)}${cells.map((cell) => String(cell).padStart(10)).join('')}`;

function values(data, name) {
  return data.metrics[name] ? data.metrics[name].values : {};
}

function trend(data, name, label) {
  const found = values(data, name);
  return found.count ? [line(label, ...COLUMNS.map((column) => fixed(found[column])), found.count)] : [];
}

function latencies(data) {
  return [
    line('milliseconds', ...COLUMNS, 'count'),
    ...trend(data, 'kronos_request_duration', 'every request, at the client'),
    ...trend(data, 'kronos_request_duration{outcome:right}', 'right answers, at the client'),
    ...trend(data, 'kronos_worker_total', 'the worker, by its own account'),
    ...STAGES.flatMap((stage) => trend(data, `kronos_stage_${stage}`, `  ${stage}`)),
    ...trend(data, 'kronos_outside_worker', 'outside the worker'),
  ];
}

function counts(d, data) {
  const begun = values(data, 'iterations').count || 0;
  const made = begun / (d.RATE * seconds(d.DURATION));
  return [
    line('requests', values(data, 'kronos_request_duration').count),
    line('forecasts found right', values(data, 'kronos_forecasts').count || 0),
    line('forecasts/s, beginning and end included', fixed(values(data, 'kronos_forecasts').rate, 2)),
    line(`goodput (right within ${d.P95_MS} ms)`, percent(values(data, 'kronos_goodput').rate)),
    line('refused in order', percent(values(data, 'kronos_refused').rate)),
    line('checks that held', percent(values(data, 'checks').rate)),
    line('known to the cache', percent(values(data, 'kronos_cache_hit').rate)),
    line('computed once for several', percent(values(data, 'kronos_cache_coalesced').rate)),
    ...(d.SCENARIO === 'open' ? [line('arrivals made of those due', percent(made))] : []),
    ...(d.RATE ? [line('arrivals dropped', values(data, 'dropped_iterations').count || 0)] : []),
  ];
}

/** Numbers of one part. `due`: how many requests there should have been; one that was dropped is not good. */
function part(data, name, due) {
  const of = (metric) => values(data, `${metric}{${name}}`);
  const took = of('kronos_request_duration');
  const requests = took.count || 0;
  const goodput = requests ? (of('kronos_goodput').rate * requests) / Math.max(requests, due) : 0;
  return { name, requests, med: took.med, p95: took['p(95)'], goodput, refused: of('kronos_refused').rate };
}

/** Each step of a ramp, and the knee: the last step before goodput first falls below 95 %. */
function steps(d, data) {
  const rows = parts(d).map((name, k) => {
    const rate = (d.RATE * (k + 1)) / d.STEPS;
    const due = (rate * seconds(d.DURATION)) / d.STEPS - 1; // an arrival at the edge may count in the next step
    return { rate, ...part(data, name, due) };
  });
  const broken = rows.findIndex((row) => row.goodput < KNEE);
  const held = broken < 0 ? rows.length : broken;
  return { rows, knee: held ? rows[held - 1].rate : 0, beyond: broken < 0 };
}

function partTable(head, rows, label) {
  return [
    '', line(head, 'requests', 'med ms', 'p(95) ms', 'goodput', 'refused'),
    ...rows.map((row) => {
      return line(label(row), row.requests, fixed(row.med), fixed(row.p95), percent(row.goodput), percent(row.refused));
    }),
  ];
}

function partLines(d, data) {
  if (d.SCENARIO === 'mixed') return partTable('kind of user', parts(d).map((name) => part(data, name, 0)), (row) => row.name);
  if (d.SCENARIO !== 'ramp') return [];
  const { rows, knee, beyond } = steps(d, data);
  const found = `${beyond ? 'above ' : ''}${fixed(knee, 2)} requests/s`;
  return [
    ...partTable('requests/s due', rows, (row) => fixed(row.rate, 2)),
    `  the knee, up to which goodput is ${100 * KNEE} % or more: ${found}`,
  ];
}

function verdicts(data) {
  const all = Object.entries(data.metrics).flatMap(([name, metric]) =>
    Object.entries(metric.thresholds || {}).map(([rule, found]) => ({ name, rule, ok: found.ok })));
  const real = all.filter(({ rule }) => !rule.endsWith('>=0')); // the others only keep numbers apart
  return real.map(({ name, rule, ok }) => `  ${ok ? 'held  ' : 'FAILED'}  ${name} ${rule}`);
}

function text(d, testid, data) {
  const given = Object.entries(d).filter(([, value]) => value !== '').map(([name, value]) => `${name}=${value}`);
  const head = [testid, `  ${given.join(' ')}`, ''];
  return [...head, ...counts(d, data), '', ...latencies(data), ...partLines(d, data), '', ...verdicts(data), ''].join('\n');
}

/** What k6's handleSummary gives: the screen, and with OUT two files. */
export function summary({ OUT: out, ...d }, testid, data) {
  if (!values(data, 'kronos_request_duration').count) return { stdout: `${testid}: nothing was measured\n` };
  const said = text(d, testid, data);
  if (!out) return { stdout: said };
  const kept = { testid, dials: d, duration_ms: data.state.testRunDurationMs, metrics: data.metrics };
  if (d.SCENARIO === 'ramp') kept.steps = steps(d, data);
  return { stdout: said, [`${out}/summary.txt`]: said, [`${out}/summary.json`]: `${JSON.stringify(kept, null, 1)}\n` };
}
