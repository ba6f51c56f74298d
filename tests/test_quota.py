"""The CPU quota's metrics, for both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.quota import QuotaCollector
from tests.serving import client

V2 = {"cpu.max": "20000 100000\n", "cpu.stat": "usage_usec 9\nnr_periods 50\nnr_throttled 40\nthrottled_usec 2500000\n"}
V1 = {
    "cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n",
    "cpu/cpu.stat": "nr_periods 50\nnr_throttled 40\nthrottled_time 2500000000\n",
}  # fmt: skip
FOUND = {
    "kronos_cpu_quota_cores": 0.2, "kronos_cpu_periods_total": 50, "kronos_cpu_throttled_periods_total": 40,
    "kronos_cpu_throttled_seconds_total": 2.5,
}  # fmt: skip


def collected(root: Path, files: dict[str, str]) -> dict[str, float]:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return {sample.name: sample.value for family in QuotaCollector(root).collect() for sample in family.samples}


@pytest.mark.parametrize("files", [V1, V2])
def test_a_quota_and_what_it_did(tmp_path: Path, files: dict[str, str]) -> None:
    """Cores, periods and seconds, whatever the version counts in."""
    assert collected(tmp_path, files) == FOUND


@pytest.mark.parametrize("changed", [{}, {**V2, "cpu.max": "max 100000\n"}, {**V1, "cpu/cpu.cfs_quota_us": "-1\n"}])
def test_without_a_quota_there_are_no_samples(tmp_path: Path, changed: dict[str, str]) -> None:
    """No cgroups, or no limit: nothing that looks like a quota of 0."""
    assert collected(tmp_path, changed) == {}


def test_a_worker_says_it() -> None:
    """With the other metrics, whether or not there is a quota here."""
    with client() as http:
        assert "# TYPE kronos_cpu_quota_cores gauge" in http.get("/metrics").text
