// The scenarios: which executor makes which load, and which thresholds decide.
// Knows: k6's options. Does not know: requests and answers.
//
// Closed loop (baseline, burst, sustained, mixed, repeated): users who wait for their answer. When the fleet slows they ask
// less, so it says what the fleet can do, nothing about a target rate. Open loop (open, ramp): arrivals come whether or not
// anybody is done; an arrival that finds no free user is dropped, never late, and then the percentiles are survivors'.

import { seconds } from './dials.js';

const PER_S = 100; // k6 wants whole rates: arrivals are given per so many seconds
const STATISTICS = ['avg', 'min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max', 'count'];
// Labels of k6's own metrics. `url` would repeat `name`, the others never differ here: series in Prometheus are not free.
const TAGS = ['check', 'error_code', 'expected_response', 'method', 'name', 'scenario', 'status'];
const SIDE_SHARE = 0.2; // part of the users of mixed that are bulk, and that repeat themselves

function users(d, count, exec) {
  return { executor: 'constant-vus', vus: count, duration: d.DURATION, ...ending(d, exec) };
}

/** Answers under way at the end are waited for: cutting them off would hide the slowest. */
function ending(d, exec) {
  return { exec, gracefulStop: `${Math.ceil(d.TIMEOUT + 10)}s` };
}

function arrivals(d) {
  return { timeUnit: `${PER_S}s`, preAllocatedVUs: d.VUS, maxVUs: d.VUS };
}

function ramp(d) {
  const each = `${(seconds(d.DURATION) / d.STEPS).toFixed(3)}s`;
  const rates = Array.from({ length: d.STEPS }, (_, k) => Math.round((PER_S * d.RATE * (k + 1)) / d.STEPS));
  const stages = rates.flatMap((target) => [{ target, duration: '0s' }, { target, duration: each }]);
  return { executor: 'ramping-arrival-rate', startRate: rates[0], stages, ...arrivals(d), ...ending(d, 'plain') };
}

function mixed(d) {
  const side = Math.round(SIDE_SHARE * d.VUS) || 1;
  if (d.VUS <= 2 * side) throw new Error(`-e VUS=${d.VUS}: mixed needs 3 users or more`);
  const counts = { interactive: d.VUS - 2 * side, bulk: side, repeated: side };
  return Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, users(d, count, name)]));
}

function executors(d) {
  if (d.SCENARIO === 'open') {
    const rate = Math.max(1, Math.round(PER_S * d.RATE));
    return { open: { executor: 'constant-arrival-rate', rate, duration: d.DURATION, ...arrivals(d), ...ending(d, 'plain') } };
  }
  if (d.SCENARIO === 'ramp') return { ramp: ramp(d) };
  if (d.SCENARIO === 'mixed') return mixed(d);
  return { [d.SCENARIO]: users(d, d.VUS, 'plain') };
}

/** The parts of a run that are told apart: steps of a ramp, kinds of user of mixed. */
export function parts(d) {
  if (d.SCENARIO === 'ramp') return Array.from({ length: d.STEPS }, (_, k) => `step:${k + 1}`);
  return d.SCENARIO === 'mixed' ? Object.keys(mixed(d)).map((name) => `scenario:${name}`) : [];
}

/** Thresholds that always hold; their only use is that k6 then keeps the numbers of each part. */
function kept(d) {
  return Object.fromEntries(parts(d).flatMap((part) => [
    [`kronos_request_duration{${part}}`, ['max>=0']],
    [`kronos_goodput{${part}}`, ['rate>=0']],
    [`kronos_refused{${part}}`, ['rate>=0']],
  ]));
}

/** A run is good when every answer was right, few were refused, p95 of the right ones met the objective, and enough were known. */
function thresholds(d) {
  const p95 = [`p(95)<=${d.P95_MS}`];
  const always = { ...kept(d), checks: ['rate==1'] };
  if (d.SCENARIO === 'ramp') return { ...always, 'kronos_goodput{step:1}': ['rate>=0.95'] }; // the later ones may fail
  const failed = { http_req_failed: [`rate<=${d.MAX_FAILED}`] };
  const arrived = d.SCENARIO === 'open' ? { dropped_iterations: ['count==0'] } : {};
  const known = d.MIN_HITS ? { kronos_cache_hit: [`rate>${d.MIN_HITS}`] } : {};
  return { ...always, ...failed, ...arrived, ...known, 'kronos_request_duration{outcome:right}': p95 };
}

/** k6's options for these dials. */
export function options(d) {
  const testid = d.TESTID || `${d.SCENARIO}-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, '')}`;
  return {
    scenarios: executors(d),
    thresholds: thresholds(d),
    summaryTrendStats: STATISTICS,
    systemTags: TAGS,
    tags: { testid },
  };
}

/** The step of a ramp, from 1, that a moment (ms since the scenario began) is in. */
export function step(d, elapsedMs) {
  const each = (1000 * seconds(d.DURATION)) / d.STEPS;
  return Math.min(d.STEPS, Math.floor(elapsedMs / each) + 1);
}
