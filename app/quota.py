"""The CPU quota of this process's container, and how often it stood still because of it.

Knows: cgroups (both versions). Does not know: who looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.metrics import REGISTRY

ROOT: Final = Path("/sys/fs/cgroup")


class QuotaCollector(Collector):
    """Read anew for each scrape; families without samples where there is no quota. ``root`` is where cgroups are mounted."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def collect(self) -> Iterator[Metric]:
        quota = GaugeMetricFamily("kronos_cpu_quota_cores", "Cores that the container may use; absent without a quota.")
        counters = (
            CounterMetricFamily("kronos_cpu_periods", "Periods of the quota (100 ms) in which there was work."),
            CounterMetricFamily("kronos_cpu_throttled_periods", "Periods in which the quota ran out."),
            CounterMetricFamily("kronos_cpu_throttled_seconds", "Seconds that threads stood still without quota, added up."),
        )
        cores = self._cores()
        if cores is not None:
            quota.add_metric([], cores)
            for counter, value in zip(counters, self._used(), strict=True):
                counter.add_metric([], value)
        yield from (quota, *counters)

    def _cores(self) -> float | None:
        """Version 2 has one file, version 1 two; "max" and -1 mean no quota."""
        words = self._words("cpu.max") or [*self._words("cpu/cpu.cfs_quota_us"), *self._words("cpu/cpu.cfs_period_us")]
        return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] not in {"max", "-1"} else None

    def _used(self) -> tuple[float, float, float]:
        """Periods, throttled periods, seconds throttled; version 1 counts nanoseconds, version 2 microseconds."""
        words = self._words("cpu.stat") or self._words("cpu/cpu.stat")
        found = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        seconds = found["throttled_usec"] / 1e6 if "throttled_usec" in found else found.get("throttled_time", 0.0) / 1e9
        return found.get("nr_periods", 0.0), found.get("nr_throttled", 0.0), seconds

    def _words(self, name: str) -> list[str]:
        try:
            return (self.root / name).read_text().split()
        except OSError:
            return []


@cache
def publish() -> None:
    """Let every scrape of this process read its quota."""
    REGISTRY.register(QuotaCollector())
