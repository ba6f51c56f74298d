"""The tables of the demo checkpoint's model card, rendered from evaluation.json.

Knows markdown and the JSON's shape. The card's prose is written by hand; what lies between a pair of marks
`<!-- table: NAME -->` and `<!-- end -->` is replaced, so that no figure is copied by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SCORES = (("mae", "MAE"), ("rmse", "RMSE"), ("percent", "MAE, %"), ("crps", "CRPS"), ("pinball", "pinball"))
_CHANGES = (("mae", "MAE"), ("crps", "CRPS"), ("pinball", "pinball"))


def checkpoint(evaluation: Mapping[str, Any]) -> str:
    """What was judged: parameters, bytes and hash of each part."""
    rows = [
        (name, f"{part['parameters']:,}", f"{part['bytes'] / 1e6:.2f} MB", f"`{part['sha256'][:12]}`")
        for name, part in evaluation["checkpoint"].items()
    ]
    return _table(("part", "parameters", "file", "sha256, first digits"), rows)


def recipe(evaluation: Mapping[str, Any]) -> str:
    """The two training runs; the seed is the same for both."""
    rows = [
        (
            part,
            f"{phase['steps']:,}",
            f"{phase['candles']:,}",
            f"{phase['rate']:g}",
            str(evaluation["recipe"]["seed"]),
        )
        for part, phase in ((part, evaluation["recipe"][f"{part}_phase"]) for part in ("tokenizer", "model"))
    ]
    return _table(("part", "steps", "candles a step, about", "highest learning rate", "seed"), rows)


def scores(evaluation: Mapping[str, Any]) -> str:
    """Every forecaster on every setting."""
    rows = [
        (_setting(setting), name, *(f"{values[key]:.3f}" for key, _ in _SCORES), _percent(values["coverage"]))
        for setting in evaluation["settings"]
        for name, values in setting["forecasters"].items()
    ]
    return _table(
        ("held-out data", "forecast", *(title for _, title in _SCORES), "in the 80 % interval"), rows
    )


def changes(evaluation: Mapping[str, Any]) -> str:
    """Relative change against each baseline, paired by series; negative = the demo is better."""
    rows = [
        (_setting(setting), name, other, *(_percent(values[key], signed=True) for key, _ in _CHANGES))
        for setting in evaluation["settings"]
        for name, baselines in setting["changes"].items()
        for other, values in baselines.items()
    ]
    return _table(("held-out data", "forecast", "against", *(title for _, title in _CHANGES)), rows)


def groups(evaluation: Mapping[str, Any]) -> str:
    """By regime and by spacing of the synthetic series."""
    rows = [
        (
            setting["name"], group["group"], str(group["series"]),
            _percent(group["mae_to_last_value"], signed=True),
            _percent(group["crps_to_historical_volatility"], signed=True), f"{100 * group['coverage']:.0f} %",
        )
        for setting in evaluation["settings"]
        for group in setting["groups"]
    ]  # fmt: skip
    titles = (
        "held-out data",
        "group",
        "series",
        "MAE to last value",
        "CRPS to historical volatility",
        "coverage",
    )
    return _table(titles, rows)


def _setting(setting: Mapping[str, Any]) -> str:
    return f"{setting['name']} ({setting['series']})"


def _percent(interval: Mapping[str, float], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    estimate, low, high = (format(100 * interval[key], f"{sign}.0f") for key in ("estimate", "low", "high"))
    return f"{estimate} % [{low}, {high}]"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "checkpoint": checkpoint, "recipe": recipe, "scores": scores, "changes": changes, "groups": groups,
}  # fmt: skip


def render(text: str, evaluation: Mapping[str, Any]) -> str:
    """The card with every marked table made anew. Raises ValueError for a mark that names no table."""

    def replace(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise ValueError(f"the card asks for a table {match['name']!r}; there are {sorted(TABLES)}")
        return f"{match[1]}{TABLES[match['name']](evaluation)}\n{match[3]}"

    return _MARKED.sub(replace, text)
