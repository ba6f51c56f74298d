"""From the containers that run to those that should, without losing a request.

The order is the whole point: new workers first, stop an old one only when its successor is healthy and nginx has had
time to find it.

Knows: that order, and what to do when a new worker does not serve. Does not know: options, the services beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.compose import workers
from fleet.compose.containers import GONE, Container
from fleet.compose.engine import Engine
from fleet.desk import uninterrupted
from fleet.errors import RollHalted, WorkerFailed
from fleet.runtime import READY

SETTLE_S = 4.0
"""From healthy to served by nginx: it asks DNS every second, and leaves a worker that was still loading out for two."""


@dataclass(frozen=True)
class Change:
    """How one fleet is changed: ``startup_s`` is the workers' own bound for their start, ``grace_s`` for their end."""

    engine: Engine
    startup_s: float
    grace_s: float

    def converge(self, target: int) -> None:
        """Exactly ``target`` workers, whatever their settings. Raises WorkerFailed with nothing changed."""
        self.clean()
        found = self.engine.workers()
        if len(found) < target:
            more = target - len(found)
            self.engine.desk.say(f"Starting {more} worker{'s' if more > 1 else ''}")
            self.add(found, more)
        for each in dispensable(found, target):
            self.engine.desk.say(f"Stopping {each.name}")
            workers.retire(self.engine, each, self.grace_s)

    def clean(self) -> None:
        """Containers in which nothing runs are in the way: ``docker compose up`` would start them again as they are."""
        for each in self.engine.workers():
            if each.status in GONE:
                workers.discard(self.engine, each)

    def add(self, found: Sequence[Container], more: int) -> None:
        """``more`` workers beside those found; when one does not serve, all new ones go again."""
        try:
            workers.start(self.engine, len(found) + more)
            workers.wait_ready(self.engine, found, more, self.startup_s)
        except BaseException:
            with uninterrupted():
                for each in workers.strangers(self.engine, found):
                    workers.discard(self.engine, each)
            raise

    def roll(self, old: Sequence[Container], target: int, look: str) -> None:
        """A new worker for each of ``old``, one at a time; never fewer than ``target`` serve.

        ``look`` is the command that repeats it. Raises RollHalted. Until it is through, ``target`` is remembered, so
        that a verb after an interruption does not take the successor for one more worker.
        """
        self.remember(target)
        for done, each in enumerate(old):
            self.engine.desk.say(f"Replacing {each.name} ({done + 1} of {len(old)})")
            try:
                self.add(self.engine.workers(), 1)
            except WorkerFailed as error:
                self.forget()
                raise RollHalted.because(error.what, done, len(old), look, error.then) from error
            self.engine.desk.host.sleep(SETTLE_S, "nginx finds the new worker")
            workers.retire(self.engine, each, self.grace_s)
        self.forget()

    def remember(self, target: int) -> None:
        """How many workers there are to be after the roll that begins."""
        self.engine.desk.host.write(self._unfinished, json.dumps({"workers": target}) + "\n")

    def forget(self) -> None:
        """There are as many workers as there are to be."""
        if self.remembered() is not None:
            self.engine.desk.host.remove(self._unfinished)

    def remembered(self) -> int | None:
        """How many workers a roll that did not end was to leave; None when there is no such roll."""
        text = self.engine.desk.host.read_log(self._unfinished)
        return int(json.loads(text)["workers"]) if text else None

    @property
    def _unfinished(self) -> Path:
        return self.engine.desk.folders.run / "roll.json"


def dispensable(found: Sequence[Container], target: int) -> list[Container]:
    """Who goes when there are more than ``target``: first those that do not serve, then the highest numbers."""
    order = sorted(found, key=lambda each: (each.state == READY, -each.number))
    return order[: max(0, len(found) - target)]
