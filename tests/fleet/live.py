"""A real fleet for tests: the real command line, real gunicorn, real nginx, the stub as application.

Knows: how to start it on free ports, ask it, break it, and put it under load. Does not know: what should happen.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.users import Exchange, Load, Request, run
from fleet.__main__ import main
from fleet.host import Answer, Machine
from fleet.state import Fleet, Worker, from_json
from tests.fleet.stub import PREDICT, forecast

ROOT = Path(__file__).resolve().parents[2]
STUB = ("--app", "tests.fleet.stub:app", "--gunicorn-conf", "tests/fleet/gunicorn.conf.py")


def free_ports() -> int:
    """The first of twenty ports that nobody holds, below those that the kernel gives to outgoing connections."""
    while True:
        first = random.randrange(20000, 32000, 20)
        if all(Machine().port_holder("127.0.0.1", port) is None for port in range(first, first + 20)):
            return first


@dataclass
class Live:
    """One fleet in its own ``.run``."""

    run: Path
    port: int
    worker_port: int
    app: tuple[str, ...] = STUB

    def environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """This process's without settings of workers, but for the result cache: workers that are to be at work are asked the
        same few requests again and again."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("KRONOS_", "FLEET_"))}
        return {**inherited, "KRONOS_CACHE_TTL": "0", **(more or {})}

    def start_cli(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """``python -m fleet`` in a process of its own, output in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "fleet", "--run", str(self.run), *arguments],
            cwd=ROOT, env=self.environment(env), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def cli(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The same in this process, which saves a second each time: exit code and everything it said."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                code = main(["--run", str(self.run), *arguments], self.environment(env))
            except SystemExit as usage:  # argparse's way
                code = int(usage.code or 0)
        return code, said.getvalue()

    def up(self, workers: int, *more: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """``fleet up`` on this fleet's ports, with ``self.app``."""
        return self.cli(*self.up_arguments(workers), *more, env=env)

    def up_arguments(self, workers: int) -> list[str]:
        ports = ("--port", str(self.port), "--worker-port", str(self.worker_port))
        return ["up", "--workers", str(workers), *ports, *self.app]

    @property
    def fleet(self) -> Fleet:
        return from_json((self.run / "fleet.json").read_text())

    def worker(self, number: int) -> Worker:
        return next(worker for worker in self.fleet.workers if worker.number == number)

    def child(self, worker: Worker) -> int:
        """The pid of the process that serves; it may just be coming back."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            family = Machine().family(worker.process)
            if len(family) > 1:
                return family[1].pid
            time.sleep(0.05)
        raise TimeoutError(f"{worker.name} has no process that serves")

    def came_back(self, worker: Worker, before: int) -> bool:
        """Another process than ``before`` serves."""
        return self.child(worker) != before and self.ready(worker)

    def ready(self, worker: Worker) -> bool:
        answer = Machine().get("127.0.0.1", worker.port, "/readyz")
        return answer is not None and answer.status == 200

    def fault(self, worker: Worker, kind: str) -> None:
        """Tell one stub how to misbehave; "" for not at all."""
        answer = ask(worker.port, "POST", "/stub/fault", kind.encode())
        if answer.status != 200:
            raise RuntimeError(f"the stub did not take the fault: {answer}")

    def access_log(self) -> list[dict[str, Any]]:
        lines = (self.run / "logs" / "nginx-access.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def logged(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The access log's lines of a request id: nginx writes them once the client has its answer."""

        def lines() -> list[dict[str, Any]]:
            return [line for line in self.access_log() if line["request_id"] == request_id]

        wait_until(lambda: len(lines()) >= count, 5)
        return lines()

    def running(self, fleet: Fleet) -> list[int]:
        """The pids of everything in the sessions of ``fleet``."""
        machine = Machine()
        return [member.pid for process in fleet.processes.values() for member in machine.family(process)]

    @contextmanager
    def load(
        self,
        users: int = 8,
        pause: tuple[float, float] = (0.02, 0.1),
        sleep: float = 0.0,
        requests: Sequence[Request] | None = None,
    ) -> Iterator[Traffic]:
        """``load`` on this fleet's port, by default with requests whose answers are known."""
        asked = requests or [stub_request(seed, sleep) for seed in range(16)]
        with load(self.port, asked, users, pause) as traffic:
            yield traffic


@dataclass
class Traffic:
    """The exchanges, known once the load has ended. ``began`` is about the zero of their clock (perf_counter)."""

    exchanges: list[Exchange] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.perf_counter)

    @property
    def failures(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.failure]

    def shares(self) -> dict[str, float]:
        """Part of the answers by worker."""
        names = [exchange.served_by for exchange in self.exchanges if not exchange.failure]
        return {name: names.count(name) / len(names) for name in set(names)}


@contextmanager
def load(
    port: int, requests: Sequence[Request], users: int, pause: tuple[float, float], rate: float = 0.0
) -> Iterator[Traffic]:
    """Closed-loop users in a thread for as long as the block lasts, or with a ``rate`` (1/s) an open loop; each answer is
    compared."""
    traffic = Traffic()
    users_of_block = Load("127.0.0.1", port, users, seconds=600, pause=pause, rate=rate)
    thread = threading.Thread(
        target=lambda: traffic.exchanges.extend(asyncio.run(run(users_of_block, requests, traffic.ended.is_set)))
    )
    thread.start()
    try:
        yield traffic
    finally:
        traffic.ended.set()
        thread.join()


def document(seed: int, sleep: float = 0.0, candles: int = 20) -> dict[str, Any]:
    """A small request, different for each seed; ``sleep`` seconds is how long the stub takes for it."""
    own = random.Random(seed)
    closes = [100 + own.random() for _ in range(candles)]
    return {
        "series_id": f"{seed} sleep={sleep}" if sleep else f"{seed}",
        "candles": [{"open": c, "high": c + 1, "low": c - 1, "close": c} for c in closes],
        "timestamps": [f"2024-06-01T00:{minute:02d}:00" for minute in range(candles)],
        "prediction_timestamps": [f"2024-06-01T01:{minute:02d}:00" for minute in range(5)],
    }


def stub_request(seed: int, sleep: float = 0.0) -> Request:
    """With the check that the answer is the one to this request and to no other."""
    asked = document(seed, sleep)
    expected = forecast(asked)["prediction"]

    def check(body: bytes) -> str:
        return "" if json.loads(body)["prediction"] == expected else "wrong answer"

    return Request(PREDICT, json.dumps(asked).encode(), check)


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """One request; raises what http.client raises."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def wait_until(check: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until ``check`` was true; raises TimeoutError."""
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def live(run: Path, app: tuple[str, ...] = STUB) -> Iterator[Live]:
    """A fleet that is certainly down afterwards; ``app`` are the options that choose the application."""
    first = free_ports()
    fleet = Live(run, first, first + 1, app)
    try:
        yield fleet
    finally:
        state = fleet.fleet if (run / "fleet.json").exists() else None
        code, said = fleet.cli("down", "--now")
        left = fleet.running(state) if state else []
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if code or left:
            raise RuntimeError(f"the fleet did not go down ({code}, {left}): {said}")
