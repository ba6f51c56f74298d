// Requests from real candles, in JSON as far as it can be made beforehand: one body is 45 kB, and making it anew for each
// request would be most of the generator's work.
// Knows: the request documents. Does not know: HTTP, scenarios.
//
// The candles' own times have a lunch break and nights. Here they are put on an unbroken grid of five minutes, so that
// `prediction_timestamps` can be left out and the server has to continue the series.

import { SharedArray } from 'k6/data';

const ROWS = new SharedArray('rows', () =>
  open('../../data/candles.csv').trim().split('\n').slice(1).map((line) => {
    const [, opened, high, low, close, volume, amount] = line.trim().split(',');
    return `{"open":${opened},"high":${high},"low":${low},"close":${close},"volume":${volume},"amount":${amount}}`;
  }),
);
const GRID_START_MS = Date.UTC(2024, 5, 1);
const GRID_STEP_MS = 5 * 60 * 1000;
const STRIDE = 37; // rows from one window to the next: prime, so that windows begin at all hours
export const QUANTILES = [0.1, 0.5, 0.9];

/** ISO 8601 text of a place on the grid. */
function stamp(index) {
  return `${new Date(GRID_START_MS + index * GRID_STEP_MS).toISOString().slice(0, 19)}Z`;
}

function stamps(first, count) {
  return Array.from({ length: count }, (_, k) => stamp(first + k));
}

/** Histories of `lookback` candles, `windows` different ones, as the end of a series' JSON. Call it in the init context. */
export function histories(lookback, windows) {
  const ends = new SharedArray(`histories of ${lookback}`, () => {
    const rows = Array.from(ROWS);
    return Array.from({ length: windows }, (_, window) => {
      const first = (window * STRIDE) % (rows.length - lookback + 1);
      const candles = rows.slice(first, first + lookback).join(',');
      return { next: first + lookback, json: `"candles":[${candles}],"timestamps":${JSON.stringify(stamps(first, lookback))}}` };
    });
  });
  const seen = []; // a look into a SharedArray copies: each user keeps the windows it has used
  return (number) => {
    const window = number % windows;
    if (!seen[window]) seen[window] = ends[window];
    return seen[window];
  };
}

const futures = new Map(); // of this user: first place on the grid and length → texts

function future(next, horizon) {
  const key = `${next}+${horizon}`;
  if (!futures.has(key)) futures.set(key, stamps(next, horizon));
  return futures.get(key);
}

/** One series: its JSON without the opening brace, and what its answer must hold. `shape` is horizon and samples. */
export function series(history, shape, id, seed) {
  const quantiles = shape.samples > 1 ? QUANTILES : [];
  const asked = quantiles.length ? `"quantiles":${JSON.stringify(quantiles)},` : '';
  const overrides = `"overrides":{"pred_len":${shape.horizon},"sample_count":${shape.samples},"seed":${seed}}`;
  return {
    json: `"series_id":"${id}",${overrides},${asked}${history.json}`,
    expected: { id, stamps: future(history.next, shape.horizon), quantiles: quantiles.map(String) },
  };
}

/** A request of one series, or of several as a batch: path, body, expected items. `manner` is timeout (s) and priority. */
export function request(members, manner, batch) {
  const head = `{"timeout":${manner.timeout},"priority":"${manner.priority}",`;
  const expected = members.map((member) => member.expected);
  if (!batch) return { path: '/v1/predict/single', body: head + members[0].json, expected, batch };
  return { path: '/v1/predict/batch', body: `${head}"items":[{${members.map((m) => m.json).join(',{')}]}`, expected, batch };
}
