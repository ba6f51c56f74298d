"""The workers' numbers: the Prometheus text format, and what ``status`` derives from it.

Knows: the format and the names of the workers' metrics. Does not know: where the text comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
PREDICT_ROUTE = re.compile(r"/v1/")
Buckets = Sequence[tuple[float, float]]
"""(upper bound, number of observations up to it), in rising order, as Prometheus counts: cumulatively."""


@dataclass(frozen=True)
class Sample:
    """One line: metric name, labels, value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """The samples of a Prometheus text; comments and lines of another shape are no samples."""
    found = (SAMPLE.match(line) for line in text.splitlines())
    return [Sample(m[1], dict(LABEL.findall(m[2] or "")), float(m[3])) for m in found if m]


@dataclass(frozen=True)
class Numbers:
    """What ``status`` shows of one worker: gauges now, counters since its start.

    ``in_flight`` leaves out the question that these numbers answer.
    """

    in_flight: float
    queued: float
    answered: float
    buckets: Buckets

    def since(self, before: Numbers) -> Numbers:
        """Counters of the time between ``before`` and now; all of them when the worker began anew meanwhile."""
        if self.answered < before.answered or len(self.buckets) != len(before.buckets):
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        buckets = [(bound, count - earlier) for (bound, count), (_, earlier) in pairs]
        return Numbers(self.in_flight, self.queued, self.answered - before.answered, buckets)


def numbers(text: str) -> Numbers:
    """From the text of one worker's ``/metrics``. Only predictions and embeddings count as answered."""
    samples = parse(text)
    cumulative: dict[float, float] = {}
    for sample in samples:
        if sample.name == "kronos_request_duration_seconds_bucket" and _is_work(sample):
            bound = float(sample.labels["le"])
            cumulative[bound] = cumulative.get(bound, 0.0) + sample.value
    return Numbers(
        in_flight=max(0.0, sum(s.value for s in samples if s.name == "kronos_concurrent_requests") - 1),
        queued=sum(s.value for s in samples if s.name == "kronos_queue_depth"),
        answered=sum(s.value for s in samples if s.name == "kronos_requests_total" and _is_work(s)),
        buckets=sorted(cumulative.items()),
    )


def _is_work(sample: Sample) -> bool:
    return PREDICT_ROUTE.match(sample.labels.get("route", "")) is not None


def quantile(buckets: Buckets, q: float) -> float | None:
    """``histogram_quantile`` of Prometheus: linear inside a bucket, its lower bound in the last. None when empty."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low
