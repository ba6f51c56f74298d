"""What users of a fleet see, and what a fleet costs.

    python -m benchmarks.fleet users --users 20 --minutes 5 --lookback 400 --horizon 120 \
        --workers 5 --model DIR --tokenizer DIR
    python -m benchmarks.fleet cost --workers 5 --model DIR --tokenizer DIR

`users`: closed-loop users with pauses, through Nginx. A closed loop slows down with the server, so its rate is not a
capacity. Every answer is compared with the one the same request got alone; a 200 with other content is an error.
`cost`: one worker, then one more, and so on: seconds to ready and proportional memory (Pss) of each step.
Without `--workers` the fleet that is up in `.run` is measured. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import Memory
from benchmarks.users import Connection, Exchange, Load, Request, run
from fleet import proc
from fleet.candles import Question, read, request_document
from fleet.forecast import EXAMPLE, ROUTE
from fleet.state import Fleet, from_json

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4
"""Relative difference up to which two forecasts of one request are the same one, computed in another order."""


def fleet_cli(run_folder: Path, *arguments: str) -> None:
    """``python -m fleet``, output to standard error, so that standard output stays the report's. No result cache: work is
    what is measured, with the same few requests."""
    command = [sys.executable, "-m", "fleet", "--run", str(run_folder), *arguments]
    env = {**os.environ, "KRONOS_CACHE_TTL": "0"}
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, env=env)


@contextmanager
def fleet_to_measure(options: argparse.Namespace, workers: int | None) -> Iterator[Path]:
    """The run folder of the fleet: one of its own when ``workers`` is given, else the one that is up."""
    if workers is None:
        yield ROOT / ".run"
        return
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        run_folder = Path(folder)
        places = ["--port", str(options.port), "--worker-port", str(options.port + 100)]
        model = ["--model", options.model] if options.model else []
        tokenizer = ["--tokenizer", options.tokenizer] if options.tokenizer else []
        try:
            fleet_cli(run_folder, "up", "--workers", str(workers), *places, *model, *tokenizer)
            yield run_folder
        finally:
            fleet_cli(run_folder, "down")


def state(run_folder: Path) -> Fleet:
    return from_json((run_folder / "fleet.json").read_text())


def bodies(lookback: int, horizon: int, different: int) -> list[bytes]:
    """Different windows of the example, each with its own seed."""
    candles = read(ROOT / EXAMPLE)
    made = []
    for seed in range(different):
        last = len(candles) - (seed * 3) % max(1, len(candles) - lookback + 1)
        window = candles.iloc[max(0, last - lookback) : last] * (1 + seed / 1000)
        made.append(json.dumps(request_document(window, Question(horizon, seed=seed))).encode())
    return made


def numbers(body: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All numbers of a forecast; shape [horizon, columns]."""
    return np.array([[v for v in row.values() if not isinstance(v, str)] for row in json.loads(body)["prediction"]])


@dataclass
class Judge:
    """Compares answers with those the same requests got alone."""

    inexact: int = 0

    def request(self, body: bytes, alone: bytes) -> Request:
        """With its check: ``alone`` is the answer without any other request in flight."""
        expected = numbers(alone)

        def check(answer: bytes) -> str:
            found = numbers(answer)
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=TOLERANCE, atol=0):
                return "wrong answer"
            self.inexact += not np.array_equal(found, expected)
            return ""

        return Request(ROUTE, body, check)


async def ask_alone(host: str, port: int, asked: Sequence[bytes]) -> list[bytes]:
    """The answers one by one, nothing else in flight. Raises RuntimeError for anything but 200."""
    connection = Connection(host, port)
    answers = []
    for body in asked:
        status, _, content = await connection.post(ROUTE, body)
        if status != 200:
            raise RuntimeError(f"status {status}: {content[:500]!r}")
        answers.append(content)
    connection.close()
    return answers


def percentiles(exchanges: Sequence[Exchange]) -> dict[str, float]:
    """Seconds, pooled over all users."""
    seconds = [exchange.seconds for exchange in exchanges]
    if not seconds:
        return {}
    named = {f"p{q}": float(np.percentile(seconds, q)) for q in (50, 95, 99)}
    return {name: round(value, 4) for name, value in {**named, "max": max(seconds)}.items()}


def measure_users(options: argparse.Namespace, run_folder: Path) -> dict[str, Any]:
    """Closed-loop users against the fleet; the report."""
    fleet = state(run_folder)
    asked = bodies(options.lookback, options.horizon, options.different)
    alone = asyncio.run(ask_alone(fleet.plan.contact, fleet.plan.port, asked))
    judge = Judge()
    requests = [judge.request(body, answer) for body, answer in zip(asked, alone, strict=True)]
    load = Load(fleet.plan.contact, fleet.plan.port, options.users, options.minutes * 60, tuple(options.pause))
    memory = Memory(fleet)
    watcher = threading.Thread(target=memory.watch)
    watcher.start()
    cpu, host, began = time.process_time(), proc.cpu_seconds(), time.monotonic()
    exchanges = asyncio.run(run(load, requests))
    seconds = time.monotonic() - began
    generator, host_busy = time.process_time() - cpu, proc.cpu_seconds() - host
    memory.ended.set()
    watcher.join()
    if options.raw:
        write_raw(Path(options.raw), exchanges)
    good = [exchange for exchange in exchanges if not exchange.failure]
    shares = Counter(exchange.served_by for exchange in good)
    return {
        "users": options.users, "pause_s": options.pause, "seconds": round(seconds, 1),
        "lookback": options.lookback, "horizon": options.horizon, "workers": len(fleet.workers),
        "threads": fleet.plan.threads, "requests": len(exchanges), "rate": round(len(good) / seconds, 2),
        "latency_s": percentiles(good), "errors": dict(Counter(e.failure for e in exchanges if e.failure)),
        "equal_but_not_bit_for_bit": judge.inexact,
        "shares": {name: round(shares[name] / len(good), 3) for name in sorted(shares)},
        "memory": memory.report(), "generator_cores": round(generator / seconds, 3),
        "host_cores_busy": round(host_busy / seconds, 2), "mean_in_flight": round(mean_in_flight(exchanges, seconds), 2),
    }  # fmt: skip


def mean_in_flight(exchanges: Sequence[Exchange], seconds: float) -> float:
    """Little's law: throughput × mean latency."""
    return sum(exchange.seconds for exchange in exchanges) / seconds


def write_raw(path: Path, exchanges: Sequence[Exchange]) -> None:
    """One line for each exchange, to be judged later."""
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, fieldnames=list(Exchange.__dataclass_fields__))
        rows.writeheader()
        rows.writerows(asdict(exchange) for exchange in exchanges)


def measure_cost(options: argparse.Namespace, run_folder: Path) -> dict[str, Any]:
    """From one worker to ``options.workers``, one at a time; each makes forecasts before it is weighed."""
    asked = bodies(options.lookback, options.horizon, options.different)
    ready_s: list[float] = []
    pss_mb: list[list[float]] = []
    for workers in range(1, options.workers + 1):
        began = time.monotonic()
        if workers > 1:
            fleet_cli(run_folder, "scale", str(workers))
            ready_s.append(time.monotonic() - began)
        fleet = state(run_folder)
        asyncio.run(ask_alone("127.0.0.1", fleet.workers[-1].port, asked))
        memory = Memory(fleet)
        memory.sample()
        pss_mb.append([round(each, 1) for each in memory.samples[0][1].values()])
    totals = [sum(each) for each in pss_mb]
    more = [after - before for before, after in itertools.pairwise(totals)]
    return {
        "pss_mb": pss_mb,
        "one_more_worker_mb": [round(each, 1) for each in more],
        "one_more_worker_ready_s": [round(each, 2) for each in ready_s],
    }


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__.split("\n\n")[0])
    top.add_argument("mode", choices=["users", "cost"])
    top.add_argument("--workers", type=int, help="start a fleet of its own (default: measure the one that is up)")
    top.add_argument("--model", metavar="DIR")
    top.add_argument("--tokenizer", metavar="DIR")
    top.add_argument("--port", type=int, default=8180, help="of its own fleet (default: 8180)")
    top.add_argument("--users", type=int, default=20)
    top.add_argument("--minutes", type=float, default=5)
    top.add_argument("--pause", type=float, nargs=2, default=[0.5, 2.0], metavar=("LEAST", "MOST"), help="seconds")
    top.add_argument("--lookback", type=int, default=400)
    top.add_argument("--horizon", type=int, default=120)
    top.add_argument("--different", type=int, default=16, help="different requests (default: 16)")
    top.add_argument("--raw", metavar="FILE.csv", help="write every exchange")
    return top


def main() -> None:
    options = parser().parse_args()
    if options.mode == "cost" and options.workers is None:
        sys.exit("cost starts workers one by one: give --workers")
    with fleet_to_measure(options, 1 if options.mode == "cost" else options.workers) as run_folder:
        report = (measure_users if options.mode == "users" else measure_cost)(options, run_folder)
    from benchmarks import machine  # not above: torch would weigh on the generator

    report["machine"] = {"processor": machine.name(), "cores": len(os.sched_getaffinity(0))}
    report["load_average"] = [round(each, 2) for each in os.getloadavg()]
    for name, value in report.items():
        print(f"{name:>28}  {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
