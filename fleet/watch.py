"""``status``: what each worker is doing, measured now.

Knows: which numbers, from where, and how they look. Does not know: how to change anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table

from fleet import commands, metrics, proc
from fleet.desk import Desk
from fleet.host import Host
from fleet.state import Fleet, Process, Worker

RATE_WINDOW_S = 1.0
LOOKERS = 16
COLOURS = {"ready": "green", "not ready": "yellow", "leaving": "yellow", "unsupervised": "red", "dead": "red"}


@dataclass(frozen=True)
class Look:
    """One worker at one moment. ``numbers`` is None when it does not answer; memory is in bytes."""

    name: str
    state: str
    pid: int
    worker_pid: int | None
    port: int
    numbers: metrics.Numbers | None
    pss: int
    at: float


@dataclass(frozen=True)
class Row:
    """What is shown of one worker. ``rate`` in answers per second, ``p95_s`` in seconds, ``pss_mb`` in 10⁶ bytes."""

    name: str
    state: str
    pid: int
    worker_pid: int | None
    port: int | None
    in_flight: int | None
    queued: int | None
    rate: float | None
    p95_s: float | None
    pss_mb: float


def look(host: Host, worker: Worker, leaving: bool) -> Look:
    """Ask the worker and the kernel."""
    family = host.family(worker.process)
    children = [member.pid for member in family if member != worker.process]
    state = "dead"
    numbers = None
    if family:
        ready = host.get(commands.WORKER_HOST, worker.port, "/readyz")
        state = "no answer" if ready is None else "ready" if ready.status == 200 else "not ready"
        text = host.get(commands.WORKER_HOST, worker.port, "/metrics") if ready else None
        numbers = metrics.numbers(text.body.decode()) if text else None
        if worker.process not in family:
            state = "unsupervised"
        elif leaving:
            state = "leaving"
    pss = sum(proc.pss_bytes(member.pid) for member in family)
    first = children[0] if children else None
    return Look(worker.name, state, worker.process.pid, first, worker.port, numbers, pss, time.monotonic())


def look_at_all(host: Host, fleet: Fleet) -> list[Look]:
    """Every worker, those that leave last."""
    leaving = [False] * len(fleet.workers) + [True] * len(fleet.leaving)
    with ThreadPoolExecutor(LOOKERS) as pool:  # one that hangs must not hold up the look at the others
        return list(pool.map(partial(look, host), (*fleet.workers, *fleet.leaving), leaving))


def row(now: Look, before: Look | None) -> Row:
    """The numbers of the time between two looks; p95 since the worker's start when nothing was answered between."""
    gauges, rate, p95 = now.numbers, None, None
    if gauges and before and before.numbers and now.at > before.at:
        recent = gauges.since(before.numbers)
        rate = recent.answered / (now.at - before.at)
        p95 = metrics.quantile(recent.buckets, 0.95)
    if gauges and p95 is None:
        p95 = metrics.quantile(gauges.buckets, 0.95)
    return Row(
        now.name, now.state, now.pid, now.worker_pid, now.port,
        int(gauges.in_flight) if gauges else None, int(gauges.queued) if gauges else None,
        rate, p95, now.pss / 1e6,
    )  # fmt: skip


def nginx_row(host: Host, nginx: Process | None, port: int) -> Row:
    """Nginx in the same columns."""
    family = host.family(nginx) if nginx else []
    state = "ready" if nginx in family else "unsupervised" if family else "dead"
    pid = nginx.pid if nginx else 0
    return Row("nginx", state, pid, None, port, None, None, None, None, sum(proc.pss_bytes(m.pid) for m in family) / 1e6)


def rows(host: Host, fleet: Fleet, before: Mapping[str, Look], now: list[Look]) -> list[Row]:
    """Workers and nginx, given an earlier look by name."""
    return [*(row(each, before.get(each.name)) for each in now), nginx_row(host, fleet.nginx, fleet.plan.port)]


def table(fleet: Fleet, shown: list[Row]) -> Table:
    """The rows on the screen."""
    plan = fleet.plan
    model = plan.settings.get("KRONOS_MODEL", "the default model")
    title = f"{plan.url} · {len(fleet.workers)} workers × {plan.threads} threads · {model}"
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    result.add_column("name", no_wrap=True)
    result.add_column("state", no_wrap=True)
    for heading in ("arbiter", "pid", "port", "in flight", "queue", "rate/s", "p95 s", "Pss MB"):
        result.add_column(heading, justify="right", no_wrap=True)
    for each in shown:
        colour = COLOURS.get(each.state, "red")
        result.add_row(
            each.name, f"[{colour}]{each.state}[/]", str(each.pid), _cell(each.worker_pid), _cell(each.port),
            _cell(each.in_flight), _cell(each.queued), _cell(each.rate, ".1f"), _cell(each.p95_s, ".3g"),
            f"{each.pss_mb:.0f}",
        )  # fmt: skip
    return result


def _cell(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def advice(shown: list[Row]) -> str | None:
    """The next command, when something is not as it should be."""
    broken = [each.name for each in shown if each.state in {"dead", "unsupervised"}]
    return f"{', '.join(broken)}: repair with python -m fleet up" if broken else None


def as_document(fleet: Fleet, shown: list[Row]) -> dict[str, Any]:
    """For ``--json``."""
    return {"url": fleet.plan.url, "threads": fleet.plan.threads, "processes": [asdict(each) for each in shown]}


def measure(desk: Desk, fleet: Fleet) -> list[Row]:
    """Two looks, a second apart."""
    before = {each.name: each for each in look_at_all(desk.host, fleet)}
    time.sleep(RATE_WINDOW_S)
    return rows(desk.host, fleet, before, look_at_all(desk.host, fleet))
