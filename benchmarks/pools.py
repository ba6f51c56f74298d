"""What do named, bounded pools buy, what do they cost, and how many threads are right?

`python -m benchmarks.pools [--rounds 5] [--out FILE] [bodies] [saturation] [sizes] [log]`. Everything runs in this process on one
event loop (uvloop), ways interleaved within each round, medians over rounds.

bodies: a request of 50, 400, 2048 candles, a batch of 64, a refusal or an answer is read or written again and again, in one of
five ways: *inline* on the event loop; *yielding* to it after each series; in the *pool* `cpu`; *both*: what cannot be divided in
the pool, the series yielding; in asyncio's default *executor*. Beside it live a bystander, a small request that passes the
event loop a few times, and an engine: a thread that computes for about a millisecond without the interpreter's lock and then
needs it briefly, as a decode step does. So there are three figures: the request's own time, the bystander's since it was due,
the engine's steps in a second; each also relative to *inline* in its round.

saturation: calls that hang (webhooks to a dead host) while a store is asked every 10 ms: the store's time through one
executor for all, and through pools. sizes: throughput of 1, 2, 4 … threads for waiting, for candle frames, for SQLite.
log: a request's cost where log lines are written on the event loop, and where the pool `io` does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from app.errors import PoolSaturated
from app.pools import Pools, installed, run_in_pool
from benchmarks import machine
from benchmarks.bystanders import CASES, WAYS, Engine, Figures, beside, whole
from benchmarks.http import PATH, Target, request_body

HANG_S = 0.25
COUNTS = (1, 2, 4, 8)
BASES = {"saturation": "default executor", "log": "logging.StreamHandler"}  # the others: the same work, inline


async def bodies(engine: Engine) -> dict[str, Figures]:
    """One round of every body and answer in every way, and of nothing at all."""

    async def nothing() -> None:
        await asyncio.sleep(0.01)

    found = {"nothing": await beside(nothing, engine)}
    for name, pieces in CASES.items():
        for way, go in random.sample(list(WAYS.items()), len(WAYS)):  # none is always the first after something else
            found[f"{name}, {way}"] = await beside(partial(go, pieces), engine)
    for way in ("inline", "pool", "executor"):  # the price of the hand-over itself
        found[f"nothing to do, {way}"] = await beside(partial(WAYS[way], ()), engine)
    return found


async def saturation(engine: Engine) -> dict[str, Figures]:
    """Sixty calls that hang, and a store that is asked meanwhile, in three ways."""
    found = {}
    for name, threads in {"default executor": min(32, (os.cpu_count() or 1) + 4), "executor of 4": 4}.items():
        with ThreadPoolExecutor(threads) as shared:
            ask = partial(in_executor, shared, time.sleep)
            found[name] = await _hang(ask, ask)
    with installed(Pools({"io": 4, "db": 1}, longest=32, patience_s=1.0)) as pools:
        found["pools"] = await _hang(partial(run_in_pool, "io", time.sleep), partial(run_in_pool, "db", time.sleep))
        await pools.close(1)
    return found


async def in_executor(executor: ThreadPoolExecutor, fn: Callable[..., Any], *args: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(executor, partial(fn, *args))


async def _hang(hang: Callable[[float], Any], store: Callable[[float], Any]) -> Figures:
    laps: list[float] = []

    async def ask() -> None:
        began = time.perf_counter()
        await store(0.001)
        laps.append(time.perf_counter() - began)

    hanging = [asyncio.ensure_future(hang(HANG_S)) for _ in range(60)]
    asking = []
    for _ in range(20):
        await asyncio.sleep(0.01)
        asking.append(asyncio.create_task(ask()))
    await asyncio.gather(*asking)
    refused = sum(isinstance(end, PoolSaturated) for end in await asyncio.gather(*hanging, return_exceptions=True))
    return {"store p50 ms": 1e3 * statistics.median(laps), "store max ms": 1e3 * max(laps), "refused": refused}


async def sizes(engine: Engine) -> dict[str, Figures]:
    """How much gets done in a second by so many threads, and what the bystander and the engine notice of it."""
    found = {}
    frame = partial(whole, CASES["400 candles"])
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, tuple[Callable[[], Any], int]] = {
            "wait of 20 ms": (partial(time.sleep, 0.02), 32),
            "frame of 400": (frame, 64),
            "SQLite, NORMAL": (partial(commit, Path(folder) / "normal", "NORMAL"), 64),
            "SQLite, FULL": (partial(commit, Path(folder) / "full", "FULL"), 64),
        }
        for kind, (work, count) in kinds.items():
            for threads in COUNTS:
                with installed(Pools({"cpu": threads}, longest=1000, patience_s=60)) as pools:

                    async def many(work: Callable[[], Any] = work, count: int = count) -> None:
                        await asyncio.gather(*(run_in_pool("cpu", work) for _ in range(count)))

                    await many()  # threads and connections are made
                    figures = await beside(many, engine)
                    found[f"{kind}, {threads}"] = {"per s": 1e3 * count / figures.pop("own ms"), **figures}
                    await pools.close(1)
    return found


async def log(engine: Engine) -> dict[str, Figures]:
    """One request (400 → 120, no model) to a worker whose log lines are written on the event loop, or from the pool `io`."""
    targets = {handler: Target(bare=False, handler=handler) for handler in ("logging.StreamHandler", "app.outlet.Outlet")}
    body = request_body()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    found = {}
    for handler, target in targets.items():
        while b" 200 " not in target.ask(message)[:20]:
            await asyncio.sleep(0.05)
        found[handler] = {f"{name} µs": figure for name, figure in target.measure(message, 300).items()}
        target.stop()
    return found


LOCAL = threading.local()


def commit(path: Path, synchronous: str) -> None:
    """One durable change of a file, with a connection for each thread."""
    connections: dict[Path, sqlite3.Connection] = LOCAL.__dict__.setdefault("connections", {})
    if path not in connections:
        connections[path] = sqlite3.connect(path, timeout=30, isolation_level=None)
        connections[path].execute("PRAGMA journal_mode = WAL")
        connections[path].execute(f"PRAGMA synchronous = {synchronous}")
        connections[path].execute("CREATE TABLE IF NOT EXISTS jobs (body)")
    connections[path].execute("INSERT INTO jobs VALUES (?)", ("x" * 2000,))


PARTS = {"bodies": bodies, "saturation": saturation, "sizes": sizes, "log": log}


@contextmanager
def engine_and_pools() -> Iterator[Engine]:
    engine = Engine()
    try:
        with installed(Pools()):
            yield engine
    finally:
        engine.stop()


async def measure(parts: Sequence[str], rounds: int) -> list[dict[str, dict[str, Figures]]]:
    """Every figure of every round."""
    with engine_and_pools() as engine:
        return [{part: await PARTS[part](engine) for part in parts} for _ in range(rounds)]


def medians(rounds: list[dict[str, dict[str, Figures]]]) -> dict[str, dict[str, Figures]]:
    """Of each figure, over the rounds; ratios to what it is compared with are taken within a round first."""
    found: dict[str, dict[str, Figures]] = {}
    for part, cases in rounds[0].items():
        for case, figures in cases.items():
            row = {name: statistics.median(round_[part][case][name] for round_ in rounds) for name in figures}
            base = BASES.get(part, case.rpartition(", ")[0] + ", inline")
            for name in figures if base in cases and base != case else ():
                pairs = [(round_[part][case][name], round_[part][base][name]) for round_ in rounds]
                if all(other for _, other in pairs):
                    row[f"× {name}"] = statistics.median(one / other for one, other in pairs)
            found.setdefault(part, {})[case] = row
    return found


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to store the rounds and the medians")
    options = parser.parse_args()
    facts = {
        "processor": machine.name(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "switch_s": sys.getswitchinterval(),
    }
    print(f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}; medians of {options.rounds} rounds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(measure(options.parts or list(PARTS), options.rounds))
    found = medians(rounds)
    for part, cases in found.items():
        print(part)
        for case, row in cases.items():
            print(f"  {case:<28}" + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    document = {"machine": facts, "medians": found}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document | {"rounds": rounds}, indent=1))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
