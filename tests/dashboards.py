"""The dashboards' files as tests read them: documents, panels, queries, and what is a plausible answer to one.

Knows: the shape of Grafana's JSON, bounds by unit. Does not know: which Prometheus answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "grafana"
VARIABLE = re.compile(r"\$\{?(\w+)(?::\w+)?\}?")
"""``$name``, ``${name}``, ``${name:format}``."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One query: of which dashboard, where on it, in which unit, its text with variables, and the name of its series."""

    board: str
    place: str
    unit: str
    expr: str
    legend: str


def documents() -> dict[str, Document]:
    """Every dashboard by its file's name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "dashboards").glob("*.json"))}


def panels(document: Document) -> list[Document]:
    """All panels that draw something; rows are only headings."""
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def queries(panel: Document) -> Iterator[tuple[str, str, str]]:
    """Unit, expression and legend of each query: a table's columns have their own units, found by their names."""
    overrides = {rule["matcher"]["options"]: rule["properties"] for rule in panel["fieldConfig"].get("overrides", [])}
    for target in panel["targets"]:
        own = overrides.get(target["legendFormat"], []) if panel["type"] == "table" else []
        unit = next((each["value"] for each in own if each["id"] == "unit"), panel["fieldConfig"]["defaults"]["unit"])
        yield unit, target["expr"], target["legendFormat"]


def asked(document: Document) -> list[Asked]:
    """Every query of every panel and annotation."""
    board = document["uid"]
    found = [Asked(board, panel["title"], *each) for panel in panels(document) for each in queries(panel)]
    marks = document.get("annotations", {}).get("list", [])
    return found + [Asked(board, f"annotation {mark['name']}", "mark", mark["expr"], mark["titleFormat"]) for mark in marks]


def variables(document: Document) -> dict[str, Document]:
    """The dashboard's variables by name."""
    return {variable["name"]: variable for variable in document["templating"]["list"]}


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with every variable replaced. Raises KeyError for one without a value."""
    return VARIABLE.sub(lambda found: values[found[1]], text)


BOUNDS = {"percentunit": 1.05, "s": 1e6, "reqps": 1e5, "ops": 1e6, "short": 1e7, "bytes": 1e12, "mark": 1e14}
"""The largest plausible value by unit. A rate over a window of few scrapes may pass 1 by some hundredths."""


def faults(query: Asked, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with Prometheus's answer: nothing at all, no number, out of bounds, or a legend without its label."""
    found = [] if samples else ["no data"]
    for sample in samples:
        value = float(sample["value"][1])
        if not (math.isfinite(value) and 0 <= value <= BOUNDS[query.unit]):
            found.append(f"{value} {query.unit} for {dict(sample['metric'])}")
        missing = {label for label in re.findall(r"{{(\w+)}}", query.legend) if label not in sample["metric"]}
        found += [f"the legend needs {label}, there is {dict(sample['metric'])}" for label in sorted(missing)]
    return found
