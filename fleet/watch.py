"""``status``: what each worker is doing, measured now.

Knows: which numbers are shown, how they follow from two looks, and how they look. Does not know: how to look, or how
to change anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fleet import metrics
from fleet.runtime import READY, Front, Look, Runtime

RATE_WINDOW_S = 1.0
COLOURS = {READY: "green", "not ready": "yellow", "leaving": "yellow", "coming": "yellow", "starting": "yellow"}
"""Any other state is red."""


@dataclass(frozen=True)
class Row:
    """What is shown of one process or container.

    ``rate`` in answers per second, ``p95_s`` in seconds, ``memory_mb`` in 10⁶ bytes; None for what is not known.
    """

    name: str
    state: str
    place: Mapping[str, str | int | None]
    in_flight: int | None
    queued: int | None
    rate: float | None
    p95_s: float | None
    memory_mb: float | None


def row(now: Look, before: Look | None, memory: int | None) -> Row:
    """The numbers of the time between two looks; p95 since the worker's start when nothing was answered between."""
    gauges = metrics.numbers(now.metrics) if now.metrics else None
    rate, p95 = None, None
    if gauges and before and before.metrics and now.at > before.at:
        recent = gauges.since(metrics.numbers(before.metrics))
        rate = recent.answered / (now.at - before.at)
        p95 = metrics.quantile(recent.buckets, 0.95)
    if gauges and p95 is None:
        p95 = metrics.quantile(gauges.buckets, 0.95)
    return Row(
        now.name, now.state, now.place,
        int(gauges.in_flight) if gauges else None, int(gauges.queued) if gauges else None,
        rate, p95, None if memory is None else memory / 1e6,
    )  # fmt: skip


@dataclass
class Watch:
    """Looks at a fleet again and again; each measurement is of the time since the one before."""

    runtime: Runtime
    before: Mapping[str, Look]
    looks: list[Look]

    @classmethod
    def begin(cls, runtime: Runtime) -> Watch:
        """With the first look."""
        looks = runtime.looks()
        return cls(runtime, {look.name: look for look in looks}, looks)

    def measure(self) -> list[Row]:
        """The rows of the next second."""
        with ThreadPoolExecutor(1) as pool:
            memory = pool.submit(self.runtime.memory)  # takes a while, for containers
            time.sleep(RATE_WINDOW_S)
            self.looks = self.runtime.looks()
        rows = [row(look, self.before.get(look.name), memory.result().get(look.name)) for look in self.looks]
        self.before = {look.name: look for look in self.looks}
        return rows


def table(front: Front, rows: list[Row]) -> Table:
    """The rows on the screen."""
    result = Table(title=f"{front.url} · {front.about}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    result.add_column("name", no_wrap=True)
    result.add_column("state", no_wrap=True)
    places = list(dict.fromkeys(key for each in rows for key in each.place))
    for heading in (*places, "in flight", "queue", "rate/s", "p95 s", "MB"):
        result.add_column(heading, justify="right", no_wrap=True)
    for each in rows:
        colour = COLOURS.get(each.state, "red")
        numbers = (_cell(each.in_flight), _cell(each.queued), _cell(each.rate, ".1f"), _cell(each.p95_s, ".3g"))
        where = (_cell(each.place.get(key)) for key in places)
        result.add_row(each.name, f"[{colour}]{each.state}[/]", *where, *numbers, _cell(each.memory_mb, ".0f"))
    return result


def _cell(value: float | str | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def as_document(front: Front, rows: list[Row]) -> dict[str, Any]:
    """For ``--json``."""
    flat = [{key: value for key, value in asdict(each).items() if key != "place"} | dict(each.place) for each in rows]
    return {"url": front.url, "workers": front.workers, "processes": flat}
