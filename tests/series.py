"""Which time series exist, and which ones a PromQL expression reads.

Knows: where each name is declared (app/metrics.py, the exporter's program, Prometheus's rules). Does not know: what is
asked for, or by whom.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from app import quota
from app.metrics import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
RULES = sorted((ROOT / "prometheus" / "rules").glob("*.yml"))
PROMETHEUS = {
    "up", "ALERTS", "scrape_duration_seconds", "prometheus_tsdb_head_series", "prometheus_rule_evaluation_failures_total",
}  # fmt: skip
"""What Prometheus says of itself and of its targets, as far as we ask."""

SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
NOT_SERIES = {
    "or", "and", "unless", "bool", "sum", "avg", "max", "min", "count", "topk", "quantile", "on", "ignoring", "by",
    "Inf", "NaN",
}  # fmt: skip


def of_workers() -> set[str]:
    """Names of the series in app/metrics.py, those of the process and of its quota among them."""
    quota.publish()
    return {family.name + suffix for family in REGISTRY.collect() for suffix in SUFFIXES.get(family.type, [""])}


def of_nginx() -> set[str]:
    """Names of the series that the exporter's program declares (counters are named in full there)."""
    declared = re.findall(r"(?m)^(counter|histogram) (\w+)", (ROOT / "nginx" / "exporter" / "nginx.mtail").read_text())
    return {name + suffix for kind, name in declared for suffix in (SUFFIXES[kind] if kind == "histogram" else [""])}


def rules() -> list[dict[str, Any]]:
    """Every rule of Prometheus, recording and alerting, in the order of the files."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    """Names of the series that Prometheus makes by its rules."""
    return {rule["record"] for rule in rules() if "record" in rule}


def read(expr: str) -> set[str]:
    """Names of the series that an expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w)(?!\s*\()", bare)) - NOT_SERIES
