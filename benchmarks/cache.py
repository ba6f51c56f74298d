"""What the result cache costs and saves: 400 candles → 120, one request after the other on one connection.

    python -m benchmarks.cache [--redis redis://127.0.0.1:6379] [--model demo]

The model is a no-op that answers at once (or, with `--model demo`, the demo checkpoint), so that what is left is the way.
Server processes in interleaved rounds, medians over rounds; each figure beside the one without a cache. Every request of
a miss differs in its seed. With a server for the shared cache: what a look into it costs, and an answer out of it that
another worker left there. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import logging.config
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvicorn

from app.api.decode import decode
from app.api.prepare import prepare_forecast
from app.api.schema import PredictRequest
from app.api.state import Served
from app.cache_store import key_of
from app.engine import Engine
from app.logs import dict_config
from app.main import create_app, load_model
from app.settings import Settings
from benchmarks.http import BOUNDS, PATH, InstantEngine, Target, request_body, time_stage

IDENTITY = bytes(32)


def serve(listener: socket.socket, settings: dict[str, Any], instant: bool) -> None:
    """The life of a server process."""
    served = Served(cast(Engine, InstantEngine()), "m", "t", 512, 1024, "cpu", "float32")
    app = create_app(Settings(**settings), (lambda settings: served) if instant else load_model)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False, timeout_keep_alive=600)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        logging.config.dictConfig(dict_config("info"))
        uvicorn.Server(config).run(sockets=[listener])


class Worker(Target):
    """A server process with these settings and one connection to it."""

    def __init__(self, instant: bool, **settings: Any) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=serve, args=(listener, settings, instant), daemon=True)
        self.process.start()
        self.clock = (~(self.process.pid or 0) << 3) | 2
        self.connection = socket.create_connection(listener.getsockname(), timeout=60)
        listener.close()
        while b" 200 " not in self.ask(message(0))[:20]:
            time.sleep(0.05)

    def cost(self, seeds: list[int]) -> dict[str, float]:
        """Microseconds for one request: the server's processor, and the median until the answer."""
        laps = []
        before = time.clock_gettime_ns(self.clock)
        for seed in seeds:
            began = time.perf_counter()
            self.ask(message(seed))
            laps.append(time.perf_counter() - began)
        spent = time.clock_gettime_ns(self.clock) - before
        return {"processor": spent / 1e3 / len(seeds), "latency": 1e6 * statistics.median(laps)}


def message(seed: int) -> bytes:
    """A request as bytes; another seed, another forecast."""
    body = request_body().replace(b'"seed": 7', b'"seed": %d' % (1_000_000 + seed))
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def rounds(instant: bool, redis: str | None, number: int, count: int) -> dict[str, list[float]]:
    """Every figure of every round."""
    workers = {"off": Worker(instant, cache_ttl=0), "on": Worker(instant, cache_ttl=60)}
    if redis:
        workers |= {name: Worker(instant, cache_ttl=60, redis_url=redis) for name in ("sharing", "other")}
    found: dict[str, list[float]] = {}
    base = time.time_ns() // 10**6 % 10**8 * 1000  # seeds that no run before has left in the shared cache
    for round_ in range(number):
        fresh = [base + round_ * count + index for index in range(count)]
        repeated = fresh[-1:] * count
        asked: list[tuple[str, str, list[int]]] = [("off", "off", fresh), ("miss", "on", fresh), ("hit", "on", repeated)]
        if redis:
            asked += [("shared miss", "sharing", fresh), ("shared hit", "other", fresh)]
        for name, asks, seeds in asked:
            for figure, microseconds in workers[asks].cost(seeds).items():
                found.setdefault(f"{name}, {figure}", []).append(microseconds)
    for worker in workers.values():
        worker.stop()
    return found


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200, help="requests of one round and kind")
    parser.add_argument("--redis", help="URL of a Valkey or Redis that may be filled")
    parser.add_argument("--model", choices=("none", "demo"), default="none")
    options = parser.parse_args()
    work = prepare_forecast(decode(request_body(), PredictRequest), BOUNDS).work
    key: Callable[[], Any] = lambda: key_of(IDENTITY, work)  # noqa: E731  # timed as it is called
    figures = {"key, in process": time_stage(key, 2000)}
    for name, found in rounds(options.model == "none", options.redis, options.rounds, options.count).items():
        figures[name] = statistics.median(found)
    print("microseconds for one request, p50")
    for name, figure in figures.items():
        print(f"  {name:<24}{figure:10.1f}")
    print(json.dumps({"model": options.model, "microseconds": {name: round(figure, 1) for name, figure in figures.items()}}))


if __name__ == "__main__":
    main()
