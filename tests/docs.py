"""The parts of README.md and NOTES.md that are generated, and where they belong. `python -m tests.docs` renews them."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from app import metrics
from app.settings import table

ROOT = Path(__file__).parents[1]


def metrics_table() -> str:
    """Every metric of the worker as Markdown, in the order of app/metrics.py."""
    rows = ["| metric | type | what |", "|---|---|---|"]
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            described = next(iter(metric.describe()))
            name = f"{described.name}_total" if described.type == "counter" else described.name
            labels = ",".join(metric._labelnames)  # not public, and not to be had otherwise before the first sample
            rows.append(f"| `{name}{'{' + labels + '}' if labels else ''}` | {described.type} | {described.documentation} |")
    return "\n".join(rows)


GENERATED = {"settings": table, "metrics": metrics_table}


def renewed(text: str) -> str:
    """The document with every generated part as it should be."""
    for name, make in GENERATED.items():
        before, opening, rest = re.split(rf"(<!-- {name}\b[^>]*-->\n)", text, maxsplit=1)
        text = before + opening + make().strip() + "\n" + rest[rest.index(f"<!-- /{name} -->") :]
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text()))
