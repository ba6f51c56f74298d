"""The log's way out: complete and in order when it is read, bounded and out of the way when it is not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from app import metrics, outlet, pools
from app.logs import JsonFormatter, context
from app.outlet import Outlet
from app.pools import Pools
from tests.kv_server import free_port
from tests.serving import request, until


@pytest.fixture(name="pipe")
def pipe_() -> Iterator[tuple[int, logging.Logger]]:
    """The reading end of a pipe, and a logger that writes into it."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        handler = Outlet(stream)
        handler.setFormatter(JsonFormatter())
        log = logging.Logger("test")  # one of its own, that nothing else hears
        log.addHandler(handler)
        yield reading, log
    os.close(reading)


def read(reading: int, count: int) -> list[str]:
    """The messages of the next ``count`` lines."""
    found = b""
    while found.count(b"\n") < count:
        found += os.read(reading, 1 << 16)
    return [json.loads(line)["message"] for line in found.splitlines()]


def fifty(log: logging.Logger) -> None:
    for _ in range(50):
        log.info("x")


def test_lines_come_out_once_and_in_order(pipe: tuple[int, logging.Logger]) -> None:
    """From several threads, with pools and before and after them."""
    reading, log = pipe
    log.info("before")
    with pools.installed(Pools()) as installed:
        for index in range(100):
            log.info("line %d", index)
        assert read(reading, 101) == ["before", *(f"line {index}" for index in range(100))]
        threads = [threading.Thread(target=fifty, args=(log,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert read(reading, 200) == ["x"] * 200
        assert until(lambda: installed["io"].line.empty)
    log.info("after")
    assert read(reading, 1) == ["after"]


def test_one_thread_writes_many_lines(pipe: tuple[int, logging.Logger]) -> None:
    """A line for each request must not cost a task for each request."""
    reading, log = pipe
    with pools.installed(Pools()) as installed:
        for _ in range(50):
            log.info("line")
            time.sleep(0.001)
        read(reading, 50)
        assert installed["io"].line.counts()["submitted"] <= 15


def test_a_reader_that_stalls_holds_up_nobody(pipe: tuple[int, logging.Logger], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who logs goes on; what waits is bounded, the rest is dropped and counted; when it reads again, the log goes on."""
    monkeypatch.setattr(outlet, "LONGEST", 100)
    reading, log = pipe
    dropped = metrics.REGISTRY.get_sample_value("kronos_log_lines_dropped_total") or 0.0
    with pools.installed(Pools()) as installed:
        began = time.monotonic()
        for index in range(3000):
            log.info("%d %s", index, "." * 100)
            if index % 300 == 0:
                time.sleep(0.03)
        assert time.monotonic() - began < 5
        assert not installed["io"].line.empty, "a pipe holds 64 kB: the write waits"
        lost = (metrics.REGISTRY.get_sample_value("kronos_log_lines_dropped_total") or 0.0) - dropped
        assert lost > 1000
        kept = read(reading, 3000 - int(lost))
        assert [int(message.split()[0]) for message in kept] == sorted(int(message.split()[0]) for message in kept)
        assert until(lambda: installed["io"].line.empty)
        log.info("again")
        assert read(reading, 1) == ["again"]


def test_a_critical_line_is_out_before_its_logger_goes_on(pipe: tuple[int, logging.Logger]) -> None:
    """The process may end right behind it, without any goodbye."""
    reading, log = pipe
    os.set_blocking(reading, False)
    with pools.installed(Pools()):
        log.critical("ending this process")
        assert read(reading, 1) == ["ending this process"]
        log.info("an ordinary line")
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)


def test_a_critical_line_waits_for_a_stalled_reader_only_so_long(
    pipe: tuple[int, logging.Logger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending a process that is beyond help must not depend on who reads its log."""
    monkeypatch.setattr(outlet, "LAST_WORDS_S", 0.1)
    reading, log = pipe
    with pools.installed(Pools()) as installed:
        for _ in range(1000):
            log.info("." * 100)
        time.sleep(0.1)
        began = time.monotonic()
        log.critical("ending this process")
        assert 0.1 <= time.monotonic() - began < 2
        assert read(reading, 1001)[-1] == "ending this process"
        assert until(lambda: installed["io"].line.empty)


def test_verbose_pools_do_not_make_lines_of_lines(pipe: tuple[int, logging.Logger]) -> None:
    """The tasks that write the log are not in it, all others are."""
    reading, log = pipe
    own = logging.getLogger("app.pool")
    own.addHandler(log.handlers[0])
    try:
        with pools.installed(Pools(verbose=True)) as installed:
            own.setLevel(logging.INFO)
            asyncio.run(installed["io"].run(time.sleep, 0.001))
            assert len(read(reading, 2)) == 2
            time.sleep(0.1)
            assert installed["io"].line.counts()["submitted"] <= 3
    finally:
        own.removeHandler(log.handlers[0])
        own.setLevel(logging.NOTSET)


def test_a_full_pool_delays_lines_and_loses_none(pipe: tuple[int, logging.Logger]) -> None:
    """They wait for the next line after the pool has a thread again."""
    reading, log = pipe
    gate = threading.Event()
    with pools.installed(Pools(longest=0)) as installed:
        installed["io"].submit(gate.wait, 20)
        log.info("one")
        log.info("two", **context(task="another"))
        gate.set()
        assert until(lambda: installed["io"].line.empty)
        log.info("three")
        assert read(reading, 3) == ["one", "two", "three"]


WORKER = """
import logging.config, sys, uvicorn
from app.logs import dict_config
from app.settings import Settings
from tests.serving import application
config = dict_config("info")
config["handlers"]["out"]["class"] = sys.argv[2]
logging.config.dictConfig(config)
uvicorn.run(application(Settings(cache_ttl=0)), port=int(sys.argv[1]), log_config=None, access_log=False)
"""
BODY = request(24, overrides={"pred_len": 1, "seed": 1})


@contextmanager
def worker_whose_log_nobody_reads(handler: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(port), handler], stdout=subprocess.PIPE)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:

            def ready() -> bool:
                try:
                    return http.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            assert until(ready)
            yield http, process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_worker_whose_log_is_not_read_answers_on_and_ends_when_told() -> None:
    """Its pipe is full after about a hundred lines: the 600th request is answered as the first was."""
    with worker_whose_log_nobody_reads("app.outlet.Outlet") as (http, process):
        for _ in range(600):
            assert http.post("/v1/predict/single", json=BODY).status_code == 200
        stalled = http.get("/health/thread-pools").json()["pools"]["io"]["active_tasks"]
        assert [task["name"] for task in stalled] == ["app.outlet.Outlet._gather"]
        process.terminate()
        assert process.wait(20) is not None


@pytest.mark.slow
def test_the_standard_handler_would_stop_the_worker() -> None:
    """The negative control: on the event loop, a full pipe ends all service."""
    with worker_whose_log_nobody_reads("logging.StreamHandler") as (http, _), pytest.raises(httpx.ReadTimeout):
        for _ in range(600):
            http.post("/v1/predict/single", json=BODY)
