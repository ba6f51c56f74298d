// Every metric of the load scripts, once. Times are milliseconds here and in k6's files, seconds in Prometheus.
// Knows: names and what they mean. Does not know: how an answer is judged.

import { Counter, Rate, Trend } from 'k6/metrics';

export const STAGES = [
  'read', 'parse', 'prepare_frame', 'cache', 'queue', 'encode', 'prefill', 'decode', 'detokenise', 'inverse', 'serialise',
];

// The one point of each request to judge later: from the first byte sent to the last received, who answered, how it ended.
const duration = new Trend('kronos_request_duration', true);
const goodput = new Rate('kronos_goodput'); // part of all requests that got a right answer within P95_MS
const refused = new Rate('kronos_refused'); // part of all requests that were refused in order (429, 503, 504)
const forecasts = new Counter('kronos_forecasts'); // series forecast and found right
const itemsRefused = new Counter('kronos_items_refused'); // series refused in batches that were answered 200
const stages = Object.fromEntries(STAGES.map((name) => [name, new Trend(`kronos_stage_${name}`, true)]));
const total = new Trend('kronos_worker_total', true); // the worker's own account of the whole request
const outside = new Trend('kronos_outside_worker', true); // the client's account less the worker's: network, Nginx, accept
const hit = new Rate('kronos_cache_hit'); // part of the answers that were known from before
const coalesced = new Rate('kronos_cache_coalesced'); // part that was not, but was computed once for several who asked

/** Count one judged request. */
export function record(asked, response, judged, objectiveMs, tags) {
  const { outcome, answer } = judged;
  const took = response.timings.duration;
  duration.add(took, { ...tags, outcome, worker: response.headers['X-Served-By'] || 'none' });
  goodput.add(outcome === 'right' && took <= objectiveMs, tags);
  refused.add(outcome === 'refused', tags);
  if (answer === null) return;
  forecasts.add(asked.expected.length - judged.refused, tags);
  if (judged.refused) itemsRefused.add(judged.refused, tags);
  const cache = response.headers['X-Cache'];
  hit.add(cache === 'hit', tags);
  coalesced.add(cache === 'coalesced' || cache === 'hit, coalesced', tags);
  for (const name of STAGES) {
    const spent = answer.timings[name];
    if (spent !== undefined) stages[name].add(spent, tags);
  }
  total.add(answer.timings.total, tags);
  outside.add(Math.max(0, took - answer.timings.total), tags);
}
