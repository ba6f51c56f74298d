// Load on the fleet, every answer checked for content: `k6 run tests/load/baseline.js` is 50 users for five minutes against
// http://127.0.0.1:8080; `-e SCENARIO=open -e RATE=20` and others are in dials.json. `python -m fleet.load` finds k6 and
// keeps everything a run says. Nothing is fetched.
// Knows: who asks what, and when again. Does not know: how answers are judged or counted.

import exec from 'k6/execution';
import http from 'k6/http';
import { sleep } from 'k6';

import { checkRepeated, judge } from './lib/checks.js';
import { dials } from './lib/dials.js';
import { record } from './lib/metrics.js';
import { histories, request, series } from './lib/payloads.js';
import { popular } from './lib/popular.js';
import { options as optionsOf, step } from './lib/scenarios.js';
import { summary } from './lib/summary.js';

const D = dials(__ENV);
const KEY = __ENV.FLEET_API_KEY ? { Authorization: `Bearer ${__ENV.FLEET_API_KEY}` } : {};
export const options = optionsOf(D);

// Shapes of mixed: lookback and horizon in candles, sample paths. All inside a context of 512: a window that rolls is another
// question. The bulk ones go three in a batch.
const MIXED = [[64, 24, 1], [128, 60, 1], [200, 96, 1], [400, 96, 1], [400, 24, 8]];
const BULK = [[64, 96, 4], [200, 48, 4], [400, 96, 1]];
const REPEATED = 4; // different requests that are asked again and again
const MOST_BACKOFF_S = 10;

const shaped = ([lookback, horizon, samples]) => ({ history: histories(lookback, D.WINDOWS), horizon, samples });
const shapes = D.SCENARIO === 'mixed' ? null : shaped([D.LOOKBACK, D.HORIZON, D.SAMPLES]);
const mixedShapes = D.SCENARIO === 'mixed' ? MIXED.map(shaped) : [];
const bulkShapes = D.SCENARIO === 'mixed' ? BULK.map(shaped) : [];
const pick = D.POPULAR ? popular(D.POPULAR, D.SKEW, D.SEED) : (number) => number;

/** The same number, the same series: number is counted over all users of a scenario. */
function member(shape, number) {
  return series(shape.history(number), shape, `${exec.scenario.name}-${number}`, 1000000 * D.SEED + number);
}

function ask(asked, tags) {
  const id = `k6-${exec.scenario.startTime.toString(36)}-${exec.vu.idInTest}-${exec.vu.iterationInScenario}`;
  const headers = { 'Content-Type': 'application/json', 'X-Request-ID': id, ...KEY };
  const response = http.post(D.BASE_URL + asked.path, asked.body, { headers, tags, timeout: (D.TIMEOUT + 10) * 1000 });
  const judged = judge(asked, id, response);
  record(asked, response, judged, D.P95_MS, tags);
  return { id, response, answer: judged.answer };
}

/** A user thinks, and when refused comes back when told. Arrivals of an open loop do neither. */
function rest(response) {
  const back = response.status === 200 ? 0 : Math.min(MOST_BACKOFF_S, Number(response.headers['Retry-After'] || 1));
  const thought = -Math.log(1 - Math.random()) * D.PAUSE;
  if (back || thought) sleep(Math.max(back, thought));
}

/** One request of the dials' shape: a new one, or one of the popular ones. */
export function plain() {
  const first = exec.scenario.iterationInTest * D.BATCH;
  const picked = Array.from({ length: D.BATCH }, (_, k) => pick(first + k));
  const members = picked.map((number) => member(shapes, number));
  const tags = D.SCENARIO === 'ramp' ? { step: String(step(D, Date.now() - exec.scenario.startTime)) } : {};
  const manner = { timeout: D.TIMEOUT, priority: D.PRIORITY };
  const { id, response, answer } = ask(request(members, manner, D.BATCH > 1), tags);
  if (D.POPULAR && answer !== null) checkRepeated(picked, D.BATCH > 1 ? answer.items : [answer], id);
  if (D.PAUSE !== undefined) rest(response);
}

/** Mixed: one series of changing size, somebody is waiting. */
export function interactive() {
  const number = exec.scenario.iterationInTest;
  const shape = mixedShapes[number % mixedShapes.length];
  rest(ask(request([member(shape, number)], { timeout: D.TIMEOUT, priority: 'interactive' }, false), {}).response);
}

/** Mixed: batches of unequal series, nobody is waiting. */
export function bulk() {
  const number = exec.scenario.iterationInTest * bulkShapes.length;
  const members = bulkShapes.map((shape, k) => member(shape, number + k));
  rest(ask(request(members, { timeout: D.TIMEOUT, priority: 'bulk' }, true), {}).response);
}

/** Mixed: the same few requests, byte for byte; what a cache would answer. */
export function repeated() {
  const number = exec.scenario.iterationInTest % REPEATED;
  const members = [member(mixedShapes[number % mixedShapes.length], number)];
  const { id, response, answer } = ask(request(members, { timeout: D.TIMEOUT, priority: 'interactive' }, false), {});
  if (answer !== null) checkRepeated([number], [answer], id);
  rest(response);
}

/** Not a load on nobody: say at once when the fleet is not there. */
export function setup() {
  const response = http.get(`${D.BASE_URL}/healthz`, { timeout: '10s' });
  if (response.status === 0) exec.test.abort(`nobody answers on ${D.BASE_URL} (${response.error}); start it: make up`);
}

export function handleSummary(data) {
  return summary(D, options.tags.testid, data);
}
