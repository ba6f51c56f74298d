"""What the runs of a study come to: figures from points, CPU from clocks, verdicts, the report; without fleets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.studies import figures, report, verdicts
from benchmarks.studies.clock import Sample, Usage, usage
from benchmarks.studies.folder import Folder
from tests.study_rig import SMALL, dropped, measured, point


@pytest.fixture
def whole(tmp_path: Path) -> Folder:
    """A study that was measured to its end."""
    return measured(Folder(tmp_path / "study"))


def test_figures_are_of_the_steady_window_alone() -> None:
    """What was due or done before or after it, and what was not right, is in no figure that it does not belong to."""
    before = [point(0.5 + k / 100, 0.5) for k in range(50)]
    inside = [point(2.5 + k / 10, 0.1 + k / 1000) for k in range(60)]
    refused = [point(3.0, 0.001, "refused"), point(3.1, 0.001, "refused"), point(3.2, 0.001, "failed")]
    after = [point(12.0, 3.0)]
    asked = figures.read([*after, *before, *refused, *inside, dropped(4.0), dropped(1.0)])
    found = figures.figures(asked, 2.0, 10.0)
    assert found.requests == 64  # the late one was due inside, at 9.0
    assert found.throughput == pytest.approx(60 / 8)  # but not answered inside
    assert found.p50 == pytest.approx(0.1 + 30 / 1000)
    assert found.p99 == pytest.approx(3.0)
    assert (found.refused, found.failed) == pytest.approx((2 / 64, 1 / 64))
    assert found.dropped == 1


VERSION_1 = "2000000000\nnr_periods 50\nnr_throttled 20\nthrottled_time 7\n9000\ninactive_file 1\ntotal_inactive_file 1000\n"
VERSION_2 = "usage_usec 2000000\nuser_usec 1\nnr_periods 50\nnr_throttled 20\n9000\nanon 5\ninactive_file 1000\n"


@pytest.mark.parametrize("text", [VERSION_1, VERSION_2])
def test_both_versions_of_cgroups_say_the_same(text: str) -> None:
    """CPU in seconds, memory without file pages that can be dropped."""
    assert usage(text) == Usage(2.0, 50.0, 20.0, 8000.0)


def test_cpu_is_a_share_of_the_quota_over_the_window() -> None:
    """Readings outside of the window do not count; nginx is no worker."""

    def sample(at: float, used: float) -> Sample:
        worker, nginx = Usage(used, 10 * used, 4 * used, 1e8), Usage(used / 10, 0.0, 0.0, 5e7)
        return Sample(at, 2 * used, used / 5, {"worker-1": worker, "worker-2": worker, "nginx-1": nginx})

    samples = [sample(1.0, 0.0), sample(3.0, 10.0), sample(13.0, 13.0), sample(23.0, 99.0)]
    found = figures.used(samples, (2.0, 12.0), cores=2.0, host_cores=2)
    assert found is not None
    assert msgspec.structs.astuple(found) == pytest.approx((0.3, 0.4, 0.03, 0.06, 0.3, 200.0))
    assert figures.used(samples[:1], (2.0, 12.0), 2.0, 2) is None


def test_a_difference_is_found_and_equals_stay_equal(whole: Folder) -> None:
    """Fast is twice as fast as slow; the A/A pair is no difference that matters."""
    results = report.write(whole, lambda _line: None)
    found = {(each.before, each.after, each.metric): each for each in results.versus}
    throughput = found["slow", "fast", "throughput"]
    assert throughput.verdict == "better"
    assert throughput.ratio is not None
    assert throughput.ratio.value == pytest.approx(2.0, rel=0.03)
    assert found["slow", "fast", "p95"].verdict == "better"
    assert found["fast", "fast-again", "p95"].verdict == "no difference that matters"
    assert throughput.floor == pytest.approx(0.0, abs=1e-9)


def runs_of(values: Sequence[tuple[str, int, float]], doubts: tuple[str, ...] = ()) -> list[verdicts.Run]:
    return [
        verdicts.Run(
            f"r{number:02d}-{name}", number, name, "", "", figures.Figures(100, rate, 1.0, 2.0, 3.0, 0.0, 0.0, 0), None, doubts
        )
        for name, number, rate in values
    ]


def test_nothing_is_claimed_beyond_the_noise_of_equals() -> None:
    """An A/A pair that differs as much as the pair in question takes its verdict away; so do too few rounds."""
    rounds = range(1, 7)
    pair = runs_of([(name, number, rate) for number in rounds for name, rate in (("slow", 10.0), ("fast", 11.0))])
    quiet = runs_of([("fast-again", number, 11.0) for number in rounds])
    loud = runs_of([("fast-again", number, 11.0 * (1.4 if number % 2 else 1.0)) for number in rounds])

    def verdict(runs: Sequence[verdicts.Run]) -> str:
        return next(each.verdict for each in verdicts.versus(SMALL, runs) if (each.after, each.metric) == ("fast", "throughput"))

    assert verdict(pair + quiet) == "better"
    assert verdict(pair + loud) not in {"better", "worse"}
    assert verdict([run for run in pair + quiet if run.round < 6]) == "undecided"


def test_a_doubtful_run_is_in_the_report_and_in_no_mean() -> None:
    """It is shown with its reason, and neither averaged nor compared."""
    good = runs_of([("slow", 1, 20.0), ("slow", 2, 5.0), ("slow", 3, 10.0)])
    line = verdicts.line(good + runs_of([("slow", 4, 99.0)], doubts=("k6 was killed",)), "slow")
    assert line.runs == 3
    assert line.throughput is not None
    assert line.throughput.value == pytest.approx(10.0)
    assert line.median_run == "r03-slow"


def test_the_gates_of_the_tuning_loop_hold_here_too(whole: Folder) -> None:
    """A run whose users did not wait for the fleet, or whose generator was busy with itself, does not count."""
    record = whole.records()[0]
    asked = figures.read(whole.points(record.id))
    assert figures.doubts(SMALL, record, asked, None, 2) == ()
    lazy = figures.Asked(asked.due, asked.latency / 3, asked.outcome, np.array([]))
    assert "waiting for the fleet" in figures.doubts(SMALL, record, lazy, None, 2)[0]
    busy = figures.Used(0.5, 0.0, 0.1, 1.9, 0.9, 1.0)
    assert "generator" in figures.doubts(SMALL, record, asked, busy, 2)[0]


def contents(folder: Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_the_report_follows_from_the_raw_runs_byte_for_byte(whole: Folder) -> None:
    """Made twice it is the same; it has the picture, the pieces of the long run, and the words of k6 and Prometheus."""
    report.write(whole, lambda _line: None)
    first = contents(whole)
    for name in set(first) - {"plan.json"}:
        (whole.path / name).unlink()
    report.write(whole, lambda _line: None)
    assert contents(whole) == first
    assert {"study.json", "table.md", "over-time.svg", "over-time-long.svg", "before.txt", "prometheus_queries.txt"} <= set(first)
    table = first["table.md"].decode()
    assert "once-long, piece by piece" in table
    assert "| slow | 6 |" in table
    assert first["before.txt"].startswith(b"k6 on r0")
    assert b'{instance="a"} 3' in first["prometheus_queries.txt"]


def with_cache(folder: Folder, run: str, hit: float, coalesced: float) -> None:
    """k6's summary of a run whose answers say what the cache did."""
    rates = {"kronos_cache_hit": hit, "kronos_cache_coalesced": coalesced}
    metrics = {name: {"type": "rate", "values": {"rate": rate}} for name, rate in rates.items()}
    (folder.raw / run / "summary.json").write_text(json.dumps({"metrics": {**metrics, "vus": {"type": "gauge", "values": {}}}}))


def test_what_the_cache_did_is_told_apart(whole: Folder) -> None:
    """Hits and coalesced answers by variant, and the worst run; nothing is said of variants that no cache told of."""
    assert report.write(whole, lambda _line: None).known == []
    for number in range(1, 7):
        with_cache(whole, f"r{number:02d}-fast", 0.8 + number / 100, 0.05)
    [found] = report.write(whole, lambda _line: None).known
    assert (found.variant, found.runs) == ("fast", 6)
    assert (found.hit, found.coalesced, found.fewest) == pytest.approx((0.835, 0.05, 0.81))
    table = (whole.path / "table.md").read_text()
    assert "## Known to the cache" in table and "| fast | 6 | 83.5 % | 5 % | 11.5 % | 81 % |" in table
