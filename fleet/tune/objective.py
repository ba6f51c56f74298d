"""What is asked for: an objective, a rate, worker counts, a grid of settings; parsed from the command line.

Knows: how each is written. Does not know: whether it can be met.
"""

from __future__ import annotations

import itertools
import re

import msgspec

from fleet.errors import BadSetting
from fleet.tune.protocol import Setting

UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0}


class Objective(msgspec.Struct, frozen=True):
    """``share`` of all requests that were due get a right answer within ``seconds``.

    A refused, wrong or dropped request counts as one that never ends, so that shedding load cannot meet an objective.
    """

    share: float
    seconds: float

    def __str__(self) -> str:
        return f"p{self.share * 100:.6g} ≤ {self.seconds * 1000:.12g} ms"


def objective(text: str) -> Objective:
    """``p95=500ms`` or ``p99=1.5s``. Raises BadSetting."""
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)\s*(?:=|<=|≤)\s*(\d+(?:\.\d+)?)\s*(ms|s|)", text.strip())
    if match is None or not 0 < float(match[1]) < 100 or float(match[2]) == 0:
        raise BadSetting(f"no objective: {text!r}", "write it like --slo p95=500ms")
    return Objective(float(match[1]) / 100, float(match[2]) * UNITS[match[3]])


def counts(text: str) -> tuple[int, ...]:
    """``1..8`` or ``1,2,4`` or ``3``; ascending. Raises BadSetting."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*\.\.\s*(\d+))?\s*", part)
        if match is None:
            raise BadSetting(f"no worker counts: {text!r}", "write them like --workers 1..8 or --workers 1,2,4")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not found or min(found) < 1 or max(found) > 1000:
        raise BadSetting(f"no worker counts: {text!r}", "from 1 to 1000, like --workers 1..8")
    return tuple(sorted(found))


def grid(texts: list[str]) -> list[dict[str, Setting]]:
    """``threads=1,2 slots=4,8`` is every combination, one dict each; [{}] when nothing is asked. Raises BadSetting."""
    axes: dict[str, list[Setting]] = {}
    for text in itertools.chain.from_iterable(part.split() for part in texts):
        name, _, values = text.partition("=")
        if not name.isidentifier() or not values or name in axes or name == "workers":
            raise BadSetting(f"no grid: {text!r}", "write it like --grid threads=1,2 slots=4,8")
        axes[name] = [_value(value) for value in values.split(",")]
    return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*axes.values())]


def _value(text: str) -> Setting:
    try:
        return float(text)
    except ValueError:
        return text
