"""Negative controls: with a protection off, the same fault hurts. Else the tests beside this one would prove nothing.

More of them stand where they are quick: the last try (test_nginx_names.py), ejection (test_nginx_workers.py), hardening
(test_hardening.py), the comparison of forecasts (test_same.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stack.proof import Figures, Known, steady, summary
from tests.stack.stack import ROOT, Stack, command
from tests.stack.test_faults import KILL, LONG_RATE, SIGNAL, STOP, TERM, child, python, restarts

pytestmark = pytest.mark.slow

NGINX, UPSTREAM = "nginx/nginx.conf", "nginx/containers/upstream.conf"
NO_RETRY = {
    "proxy_next_upstream error timeout invalid_header http_500 http_502 http_503 non_idempotent;": "proxy_next_upstream off;",
    "error_page 502 = @again;": "error_page 502 /.problem;",
}


@contextmanager
def without(stack: Stack, file: str, changes: Mapping[str, str]) -> Iterator[None]:
    """The project with another version of one of nginx's files."""
    text, before = (ROOT / file).read_text(), stack.file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file} has no {old}"
        text = text.replace(old, new)
    copy = stack.folder / Path(file).name
    copy.write_text(text)
    with edited(stack, {f"./{file}:": f"{copy}:"}):
        yield
    assert stack.file.read_text() == before


@contextmanager
def edited(stack: Stack, changes: Mapping[str, str]) -> Iterator[None]:
    """The project with another docker-compose.yml."""
    before = stack.file.read_text()
    for old, new in changes.items():
        assert old in before, f"docker-compose.yml has no {old}"
        stack.file.write_text(stack.file.read_text().replace(old, new))
    try:
        stack.up(3)
        yield
    finally:
        stack.file.write_text(before)


def test_without_a_second_try_a_kill_is_noticed(stack: Stack, long: Known, figures: Figures) -> None:
    """F2 without retries: whoever was being served by the dead worker gets an error. (Eight users, so that somebody is.)"""
    with without(stack, NGINX, NO_RETRY), stack.load(long.requests, users=8, pause=(0.0, 0.0)) as traffic:
        for kill in range(5):
            time.sleep(1)
            worker = stack.containers()[kill % 3]
            python(worker, SIGNAL, child(worker), KILL)
    figures.keep(**summary(traffic, long))
    assert traffic.failures


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_without_a_second_try_scaling_down_is_noticed(stack: Stack, long: Known, figures: Figures, how: str) -> None:
    """No retry, and a worker leaves: stopped in order, it finishes what it has, but nginx still knows its name for a second;
    killed, its requests are lost as well."""
    with without(stack, NGINX, NO_RETRY), steady(stack.port, long, LONG_RATE) as traffic:
        for _ in range(3):
            time.sleep(1)
            command("docker", how, stack.containers()[0].id)
            time.sleep(3)
            stack.up(3)
    figures.keep(**summary(traffic, long))
    assert traffic.failures


def test_without_resolve_new_workers_get_nothing(stack: Stack, known: Known, figures: Figures) -> None:
    """A list of workers that is looked up once stays what it was."""
    with without(stack, UPSTREAM, {"worker:8000 resolve": "worker:8000"}), steady(stack.port, known) as traffic:
        old = {container.host_name for container in stack.containers()}
        stack.up(5)
        new = {container.host_name for container in stack.containers()} - old
        time.sleep(10)
    figures.keep(new_workers=len(new), **summary(traffic, known))
    assert len(new) == 2 and not new & {exchange.served_by for exchange in traffic.exchanges}


def test_composes_own_way_to_replace_workers_is_noticed(stack: Stack, known: Known, figures: Figures) -> None:
    """Stop first, all at once, without waiting: what ``fleet roll`` is there for."""
    with steady(stack.port, known) as traffic:
        time.sleep(2)
        stack.compose("up", "-d", "--no-build", "--force-recreate", "--no-deps", "worker")
        time.sleep(10)
    figures.keep(**summary(traffic, known))
    assert traffic.failures


def test_without_a_heartbeat_a_stopped_process_stays(stack: Stack, figures: Figures) -> None:
    """F3 without gunicorn's timeout: twice the time it needs passes, and the same process is still there."""
    command_line = '    command: [gunicorn, -c, app/gunicorn.conf.py, --timeout, "0", "app.main:app"]\n'
    with edited(stack, {"    stop_grace_period: ${STOP_GRACE:-45s} #": f"{command_line}    stop_grace_period: 1s #"}):
        worker = stack.containers()[0]
        before = child(worker)
        python(worker, SIGNAL, before, STOP)
        time.sleep(20)
        figures.keep(waited_s=20, replaced=child(worker) != before)
        assert child(worker) == before


def test_without_a_restart_policy_a_worker_that_exits_stays_away(stack: Stack, figures: Figures) -> None:
    """The engine starts again only what it was told to."""
    worker = stack.containers()[0]
    command("docker", "update", "--restart", "no", worker.id)
    python(worker, SIGNAL, "1", TERM)
    time.sleep(10)
    figures.keep(waited_s=10, restarts=restarts(worker), workers=len(stack.containers()))
    assert restarts(worker) == worker.facts["RestartCount"] and len(stack.containers()) == 2
    command("docker", "rm", "-f", worker.id)
