"""The seam between what an operator wants and where workers run: processes of this machine, or containers.

Knows: what any runtime can be asked for; the tuning loop uses exactly this. Does not know: either of them
(``fleet.runtimes`` makes one).

    fleet = runtimes.make("local", …)
    fleet.scale(3)                              # returns when three serve and the rest have left
    url = fleet.front().url                     # where requests go
    metrics = {look.name: look.metrics for look in fleet.looks()}
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

READY = "ready"


@dataclass(frozen=True)
class Front:
    """Where requests go, and what is behind it. ``patience_s``: the longest a worker works on one request.

    ``workers`` counts all that should serve; ``about`` is for a heading.
    """

    url: str
    patience_s: float
    workers: int
    about: str


@dataclass(frozen=True)
class Look:
    """One process or container at one moment (``at``, seconds of a monotonic clock).

    ``state`` is ``READY`` when it serves. ``metrics`` is a worker's text in the Prometheus format; None when it does
    not answer, and for what is no worker. ``place`` says where it is, in the words of its runtime.
    """

    name: str
    is_worker: bool
    state: str
    at: float
    metrics: str | None = None
    place: Mapping[str, str | int | None] = field(default_factory=dict)


class Runtime(Protocol):
    """One fleet. Every method raises FleetErrors; those that need a fleet that is up raise NotUp.

    ``up``, ``roll`` and ``down`` take the options of their verbs (``fleet.options``).
    """

    command: str
    """How an operator calls this fleet: ``python -m fleet`` and its options."""

    def up(self, options: argparse.Namespace) -> Front | None:
        """Start or mend; when it returns, all serve. The front when workers are new, else None."""

    def abandon(self) -> None:
        """Stop what an ``up`` that did not succeed has started."""

    def scale(self, workers: int) -> int:
        """Exactly so many workers; when it returns they serve, and the others have left without losing a request.

        Returns how many there were.
        """

    def roll(self, options: argparse.Namespace) -> None:
        """Replace all workers, start-first, one at a time. Raises RollHalted with the old ones serving."""

    def down(self, options: argparse.Namespace) -> bool:
        """Stop everything, in order; False when nothing was running."""

    def front(self) -> Front:
        """Where requests go."""

    def looks(self) -> list[Look]:
        """Every worker first, then the rest."""

    def memory(self) -> dict[str, int]:
        """Bytes by the names of ``looks``."""

    def advice(self, looks: list[Look]) -> str | None:
        """What to do about what is seen, None when all is as it should be."""

    def logs(self, name: str | None, lines: int, follow: bool) -> Iterator[tuple[str, str]]:
        """(name, line): the last lines of one log or of all, and what follows."""


def ready(looks: list[Look]) -> int:
    """How many workers serve."""
    return sum(look.is_worker and look.state == READY for look in looks)
