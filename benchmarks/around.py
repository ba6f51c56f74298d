"""What the features around a prediction cost it: 400 candles → 120, one request after the other on one connection.

    python -m benchmarks.around [--model demo] [--rounds 12] [--json reports/…/demo.json]

One server process for each variant: none, a twin of it (how far the same thing differs from itself), the result cache (which
knows none of the requests), a job store (an empty queue), the prediction log in a folder, events on a real Kafka broker, rows
in a real PostgreSQL, all of these, and the servers of the last two away. All are there at once; in each round each is asked,
in an order of its own. A figure is a ratio to `off` in the same round, with a 95 % interval over rounds. The servers run on
the same machine, and what they take of it counts here. With `--model none` the model answers at once, so that what is left is
the way. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cache import Worker, message
from fleet.tune.statistics import mean_interval
from tests import kafka_server, postgres_server
from tests.kv_server import free_port

FIGURES = ("p50", "p95", "processor")
Round = dict[str, dict[str, float]]


class Timed(Worker):
    """A server process whose requests are timed."""

    def lap(self, seeds: list[int]) -> dict[str, float]:
        """Milliseconds of a request: p50, p95, and of the processor, its threads in the background included."""
        before = time.clock_gettime_ns(self.clock)
        laps = []
        for seed in seeds:
            began = time.perf_counter()
            answered = self.ask(message(seed))
            laps.append(1e3 * (time.perf_counter() - began))
            if b" 200 " not in answered[:20]:
                raise SystemExit(f"a prediction failed: {answered[:200]!r}")
        spent = time.clock_gettime_ns(self.clock) - before
        p50, p95 = np.percentile(laps, [50, 95])
        return {"p50": float(p50), "p95": float(p95), "processor": spent / 1e6 / len(seeds)}


@contextmanager
def servers() -> Iterator[dict[str, dict[str, Any]]]:
    """Settings of each variant, while its servers run."""
    with tempfile.TemporaryDirectory() as folder, kafka_server.broker() as broker, postgres_server.database() as database:
        broker.start()
        log = {"prediction_log": f"{folder}/log", "prediction_log_age": 1.0}
        kafka, postgres = {"kafka_servers": broker.servers}, {"postgres_url": database.url}
        cache, jobs = {"cache_ttl": 10.0}, {"jobs_url": f"sqlite:{folder}/jobs.db"}
        nobody = f"127.0.0.1:{free_port()}"
        yield {
            "off": {},
            "off again": {},
            "cache": cache,
            "jobs": jobs,
            "log": log,
            "kafka": kafka,
            "postgres": postgres,
            "all": cache | jobs | log | kafka | postgres,
            "away": {"kafka_servers": nobody, "postgres_url": f"postgresql://{nobody}/none"},
        }


def measure(instant: bool, rounds: int, count: int, show: bool) -> list[Round]:
    """Every figure of every variant in every round; the first, which warms up, is left out."""
    found: list[Round] = []
    with servers() as variants, ExitStack() as stack:
        workers: dict[str, Timed] = {}
        for name, settings in variants.items():
            workers[name] = Timed(instant, **{"cache_ttl": 0.0} | settings)
            stack.callback(workers[name].stop)
        for number in range(rounds + 1):
            order = random.Random(number).sample(list(workers), len(workers))
            seeds = [number * count + index for index in range(count)]
            laps = {name: workers[name].lap(seeds) for name in order}
            if number:
                found.append({name: laps[name] for name in variants})
            if show:
                print(f"round {number} of {rounds}", file=sys.stderr)
    return found


def table(found: list[Round]) -> dict[str, dict[str, Any]]:
    """By variant: the median of each figure, and its ratio to `off` with an interval."""
    summary: dict[str, dict[str, Any]] = {}
    for name in found[0]:
        row: dict[str, Any] = {f"{figure}_ms": round(median(each[name][figure] for each in found), 4) for figure in FIGURES}
        for figure in FIGURES:
            ratios = np.log([each[name][figure] / each["off"][figure] for each in found])
            interval = mean_interval(ratios).exp()
            row[f"{figure}_ratio"] = [round(number, 4) for number in (interval.value, interval.low, interval.high)]
        summary[name] = row
    return summary


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--count", type=int, default=40, help="requests of one round and variant")
    parser.add_argument("--model", choices=("none", "demo"), default="demo")
    parser.add_argument("--json", type=Path, help="also write the last line here, with every round")
    options = parser.parse_args()
    found = measure(options.model == "none", options.rounds, options.count, sys.stderr.isatty())
    summary = table(found)
    for name, row in summary.items():
        ratios = "  ".join("{} × {:.3f} ({:.3f} … {:.3f})".format(figure, *row[f"{figure}_ratio"]) for figure in FIGURES)
        print(f"  {name:<10} p50 {row['p50_ms']:8.3f} ms  {ratios}")
    document = {"model": options.model, "rounds": options.rounds, "count": options.count, "variants": summary}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document | {"raw": found}, indent=1) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
