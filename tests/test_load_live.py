"""Real k6 and real Locust for a few seconds each: against the stand-in, which can lie, and against real workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.k6 import ROOT, find_or_build, tell
from fleet.load import DIALS, main
from tests.fleet.live import Live, live, wait_until
from tests.load.rig import SHORT, free_port, run_k6, seen, standing_in
from tests.load.stand_in import KEY, LOCKED

pytestmark = pytest.mark.load

HELD, FAILED, STOPPED, GAVE_UP = 0, 99, 105, 108  # k6's exit codes
# What keeps each scenario short and small.
SMALL = {
    "baseline": SHORT,
    "open": {**SHORT, "RATE": "20", "VUS": "50", "P95_MS": "30000"},
    "ramp": {**SHORT, "RATE": "20", "STEPS": "2", "DURATION": "2s", "VUS": "50", "P95_MS": "30000"},
    "burst": SHORT,
    "sustained": SHORT,
    "mixed": {"DURATION": "2s", "VUS": "5"},
    "repeated": {**SHORT, "PAUSE": "0"},
}
CACHED = {"KRONOS_CACHE_TTL": "10"}


@pytest.fixture(scope="module")
def k6() -> Path:
    return find_or_build(tell)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[str]:
    with standing_in() as url:
        yield url


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("load") / "run", app=()) as found:
        code, said = found.up(2)
        assert code == 0, said
        yield found


@pytest.mark.parametrize("scenario", DIALS["SCENARIO"]["choices"])
def test_every_scenario_holds_against_the_truth(k6: Path, stand_in: str, tmp_path: Path, scenario: str) -> None:
    """Right answers pass every check, each stage is a trend, and nothing is dropped."""
    outcome = run_k6(k6, tmp_path, stand_in, SCENARIO=scenario, **SMALL[scenario])
    assert outcome.code == HELD, outcome.said
    assert outcome.value("checks", "rate") == outcome.value("kronos_goodput", "rate") == 1
    requests = outcome.value("kronos_request_duration", "count")
    assert requests >= 10
    assert outcome.value("kronos_stage_queue", "count") == outcome.value("kronos_stage_serialise", "count") == requests
    assert outcome.value("kronos_forecasts", "count") > (requests if scenario == "mixed" else requests - 1)
    assert (tmp_path / "summary.txt").read_text() in outcome.said


@pytest.mark.parametrize(
    "lie, question",
    [
        ("series-id", "ids are echoed"),
        ("request-id", "ids are echoed"),
        ("too-few", "candles continue the series"),
        ("too-late", "candles continue the series"),
        ("null", "numbers are finite, prices positive"),
        ("text", "numbers are finite, prices positive"),
        ("negative", "numbers are finite, prices positive"),
        ("quantiles", "quantiles are ordered"),
        ("quantile-missing", "quantiles are ordered"),
        ("untimed", "stages are timed"),
        ("not-json", "the answer is JSON"),
        ("cache-nonsense", "the cache says what it did"),
        ("refusal-without-retry", "a refusal says why and until when"),
        ("refusal-as-page", "a refusal says why and until when"),
        ("broken", "the status is in the contract"),
    ],
)
def test_a_lie_is_found_out(k6: Path, stand_in: str, tmp_path: Path, lie: str, question: str) -> None:
    """An answer that is wrong in one way fails the run, by the one question that it answers wrongly."""
    outcome = run_k6(k6, tmp_path, f"{stand_in}/lie/{lie}", **SHORT, MAX_FAILED="1")
    assert outcome.code == FAILED
    complaint = outcome.said.split("not so: ")[1].split("\n")[0]
    assert complaint.startswith(f"{question} (") and "; " not in complaint
    assert outcome.value("kronos_goodput", "rate") == 0


def test_an_answer_of_no_shape_is_found_out(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """What the checks themselves stumble over is wrong, not forgotten."""
    outcome = run_k6(k6, tmp_path, f"{stand_in}/lie/shapeless", **SHORT)
    assert outcome.code == FAILED and outcome.value("kronos_goodput", "rate") == 0


@pytest.mark.parametrize("lie", ["series-id", "too-few", "quantiles", "null", "itemless"])
def test_a_lie_in_a_batch_is_found_out(k6: Path, stand_in: str, tmp_path: Path, lie: str) -> None:
    """Every item of a batch is checked, not only the answer as a whole."""
    assert run_k6(k6, tmp_path, f"{stand_in}/lie/{lie}", **SHORT, BATCH="3").code == FAILED


def test_batches_count_their_series(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """Three series in a request are three forecasts."""
    outcome = run_k6(k6, tmp_path, stand_in, **SHORT, BATCH="3")
    assert outcome.code == HELD, outcome.said
    assert outcome.value("kronos_forecasts", "count") == 3 * outcome.value("kronos_request_duration", "count")


def test_another_answer_to_the_same_request_is_found_out(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """mixed repeats requests byte for byte; a cache that mixes up answers would show there."""
    outcome = run_k6(k6, tmp_path, f"{stand_in}/lie/unrepeatable", SCENARIO="mixed", **SMALL["mixed"])
    assert outcome.code == FAILED and "the same request gets the same answer" in outcome.said


@pytest.mark.parametrize("batch", ["1", "3"])
def test_another_answer_to_a_popular_request_is_found_out(k6: Path, stand_in: str, tmp_path: Path, batch: str) -> None:
    """Every series of every repeat is compared with what was answered before."""
    outcome = run_k6(k6, tmp_path, f"{stand_in}/lie/unrepeatable", SCENARIO="repeated", **SHORT, BATCH=batch)
    assert outcome.code == FAILED and "the same request gets the same answer" in outcome.said


def test_popular_requests_follow_zipfs_law(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """As many different ones as the dial says, the one of rank k about 1/k as often as the first; the same seed, the same."""
    dials = {**SHORT, "SCENARIO": "open", "RATE": "100", "VUS": "100", "DURATION": "4s", "POPULAR": "4"}
    counts = []
    for place in ("one", "two"):
        outcome = run_k6(k6, tmp_path, f"{stand_in}/{place}", **dials, P95_MS="30000")
        assert outcome.code == HELD, outcome.said
        asked = seen(f"{stand_in}/series")
        found = {name.split()[1]: count for name, count in asked.items() if name.startswith(f"/{place}/")}
        counts.append([found.pop(f"open-{rank}") for rank in range(4)])
        assert found == {}
    first, *others = counts[0]
    assert [count / first for count in others] == pytest.approx([1 / 2, 1 / 3, 1 / 4], abs=0.12)
    # the shorter run is the beginning of the longer one
    missing = abs(sum(counts[0]) - sum(counts[1]))
    assert all(abs(one - other) <= missing for one, other in zip(*counts, strict=True)) and min(map(sum, counts)) > 360


def test_refusals_in_order_are_no_lies(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """They are counted apart, users come back when told, and only the share that may fail decides."""
    allowed, not_allowed = tmp_path / "allowed", tmp_path / "not"
    allowed.mkdir()
    not_allowed.mkdir()
    outcome = run_k6(k6, allowed, f"{stand_in}/lie/refusal", **{**SHORT, "DURATION": "3s"}, MAX_FAILED="1")
    assert outcome.code == HELD, outcome.said
    assert outcome.value("kronos_refused", "rate") == outcome.value("checks", "rate") == 1
    assert outcome.value("kronos_request_duration", "count") <= 2 * 4  # two users, Retry-After is 1 s
    assert run_k6(k6, not_allowed, f"{stand_in}/lie/refusal", **SHORT).code == FAILED


@pytest.mark.parametrize(
    "dials, threshold",
    [
        ({"P95_MS": "0.1"}, "kronos_request_duration{outcome:right}"),
        ({"SCENARIO": "open", "RATE": "5000", "VUS": "1"}, "dropped_iterations"),
        ({"SCENARIO": "ramp", "RATE": "10", "STEPS": "2", "P95_MS": "0.1"}, "kronos_goodput{step:1}"),
        ({"SCENARIO": "baseline", "MIN_HITS": "0.5", "BASE_URL": "{stand_in}/fresh"}, "kronos_cache_hit"),
        ({"SCENARIO": "repeated", "BASE_URL": "{stand_in}/lie/never-cached"}, "kronos_cache_hit"),
    ],
)
def test_thresholds_fail(k6: Path, stand_in: str, tmp_path: Path, dials: dict[str, str], threshold: str) -> None:
    """An objective that is not met, or a rate that the generator cannot make, fails the run by name."""
    url = dials.pop("BASE_URL", "{stand_in}").format(stand_in=stand_in)
    outcome = run_k6(k6, tmp_path, url, **{**SHORT, **dials, "SEED": "9"})
    assert outcome.code == FAILED and f"FAILED  {threshold}" in outcome.said


def test_the_knee_is_where_goodput_ends(k6: Path, stand_in: str, tmp_path: Path) -> None:
    """A ramp beyond what one user can ask names the last step that held: arrivals that were dropped are not good."""
    outcome = run_k6(k6, tmp_path, stand_in, **{**SHORT, "SCENARIO": "ramp", "RATE": "20000", "STEPS": "10", "VUS": "1"})
    steps = outcome.summary["steps"]
    assert steps["beyond"] is False and steps["knee"] < 20000
    assert steps["rows"][-1]["goodput"] < 0.95


def test_nobody_there_is_said_at_once(k6: Path, tmp_path: Path) -> None:
    """Not five minutes of refused connections."""
    began = time.monotonic()
    outcome = run_k6(k6, tmp_path, f"http://127.0.0.1:{free_port()}", DURATION="60s")
    assert outcome.code == GAVE_UP and "make up" in outcome.said and time.monotonic() - began < 20
    assert outcome.summary == {}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two workers that keep answers for ten seconds, as workers do when nobody says otherwise."""
    with live(tmp_path_factory.mktemp("cached") / "run", app=()) as found:
        code, said = found.up(2, env=CACHED)
        assert code == 0, said
        yield found


# Six users with so short a pause ask at most 300 times a second; Nginx lets 500 through from one address.
POPULAR = {
    "SCENARIO": "repeated", "DURATION": "9s", "VUS": "6", "PAUSE": "0.02", "LOOKBACK": "64", "HORIZON": "96", "P95_MS": "30000",
}  # fmt: skip


def test_popular_requests_are_known(k6: Path, cached: Live, tmp_path: Path) -> None:
    """More than 80 % hits on two workers; who asked while it was computed is counted apart; every answer is right."""
    outcome = run_k6(k6, tmp_path, f"http://127.0.0.1:{cached.port}", **POPULAR)
    assert outcome.code == HELD, outcome.said
    hit, coalesced = (outcome.value(f"kronos_cache_{name}", "rate") for name in ("hit", "coalesced"))
    assert outcome.value("kronos_refused", "rate") == 0
    assert hit > 0.8 and coalesced > 0 and hit + coalesced < 1  # each of the eight is computed by somebody
    assert f"{100 * hit:.2f} %" in next(line for line in outcome.said.splitlines() if "known to the cache" in line)
    assert outcome.value("kronos_goodput", "rate") == outcome.value("checks", "rate") == 1


def test_without_a_cache_nothing_is_known(k6: Path, fleet: Live, tmp_path: Path) -> None:
    """Negative control: the same load on workers that keep nothing has no hit, and fails by that threshold alone."""
    outcome = run_k6(k6, tmp_path, f"http://127.0.0.1:{fleet.port}", **POPULAR)
    assert outcome.code == FAILED and [line for line in outcome.said.splitlines() if line.startswith("  FAILED")] == [
        "  FAILED  kronos_cache_hit rate>0.8"
    ]
    assert outcome.value("kronos_cache_hit", "rate") == outcome.value("kronos_cache_coalesced", "rate") == 0


@pytest.mark.parametrize("scenario", [name for name in DIALS["SCENARIO"]["choices"] if name != "repeated"])
def test_every_scenario_holds_against_real_workers(k6: Path, fleet: Live, tmp_path: Path, scenario: str) -> None:
    """The worker's own answers pass every check; its stages add up to less than the client saw."""
    gentle = {"RATE": "3"} if scenario in {"open", "ramp"} else {}
    dials = {**SMALL[scenario], **gentle, "DURATION": "3s", "P95_MS": "30000"}
    outcome = run_k6(k6, tmp_path, f"http://127.0.0.1:{fleet.port}", SCENARIO=scenario, **dials)
    assert outcome.code == HELD, outcome.said
    assert outcome.value("checks", "rate") == 1
    assert 0 < outcome.value("kronos_worker_total", "avg") < outcome.value("kronos_request_duration", "avg")
    assert outcome.value("kronos_stage_decode", "avg") < outcome.value("kronos_worker_total", "avg")


def test_everything_is_kept(stand_in: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Summary as text and JSON, dashboard, every point, what was run; and Prometheus gets it while it runs."""
    dials = {**SHORT, "DURATION": "12s", "VUS": "1", "TESTID": "mine", "PAUSE": "0.2"}  # shorter, and there is no dashboard
    arguments = [argument for name, value in dials.items() for argument in ("-e", f"{name}={value}")]
    before = seen(stand_in).get("/prometheus/api/v1/write", 0)
    assert main(["baseline", *arguments, "-e", f"BASE_URL={stand_in}", "--into", str(tmp_path)]) == HELD, capfd.readouterr()
    folder = tmp_path / "mine"
    assert {each.name for each in folder.iterdir()} == {
        "summary.txt", "summary.json", "dashboard.html", "raw.json.gz", "run.json",
    }  # fmt: skip
    assert seen(stand_in)["/prometheus/api/v1/write"] > before
    points = subprocess.run(["gzip", "-dc", folder / "raw.json.gz"], capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in points.splitlines()]
    durations = [row["data"] for row in rows if row["type"] == "Point" and row["metric"] == "kronos_request_duration"]
    assert {"testid": "mine", "outcome": "right", "worker": "stand-in"}.items() <= durations[0]["tags"].items()
    count = json.loads((folder / "summary.json").read_text())["metrics"]["kronos_request_duration"]["values"]["count"]
    assert len(durations) == count


@pytest.mark.parametrize("key", [KEY, None], ids=["with", "without"])
def test_a_fleet_that_wants_a_key_gets_it(
    stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """k6 and Locust show FLEET_API_KEY; it is in nothing that a run keeps. The control: without it every request fails."""
    monkeypatch.delenv("FLEET_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("FLEET_API_KEY", key)
    dials = {**SHORT, "TESTID": "mine", "BASE_URL": f"{stand_in}{LOCKED}"}
    arguments = [argument for name, value in dials.items() for argument in ("-e", f"{name}={value}")]
    assert (main([*arguments, "--no-dashboard", "--into", str(tmp_path)]) == HELD) == bool(key)
    kept = [path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.suffix in (".txt", ".json")]
    assert len(kept) == 3 and not any(KEY.encode() in text for text in kept)
    assert (locust(f"{stand_in}{LOCKED}", "--seconds", "2").returncode == 0) == bool(key)


def test_ctrl_c_keeps_what_there_is(stand_in: str, tmp_path: Path) -> None:
    """An interrupted run ends at once, with its summary."""
    dials = {**SHORT, "DURATION": "60s", "TESTID": "mine", "BASE_URL": stand_in}
    arguments = [argument for name, value in dials.items() for argument in ("-e", f"{name}={value}")]
    argv = [sys.executable, "-m", "fleet.load", *arguments, "--into", str(tmp_path)]
    before = seen(stand_in).get("/v1/predict/single", 0)
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: seen(stand_in).get("/v1/predict/single", 0) > before + 5, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == STOPPED
    assert json.loads((tmp_path / "mine" / "summary.json").read_text())["metrics"]["kronos_forecasts"]["values"]["count"] > 0


def locust(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py", "--headless", "--host", url, *options]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_locust_holds_against_real_workers(fleet: Live) -> None:
    """Ten users, singles and batches of three, every answer right."""
    done = locust(f"http://127.0.0.1:{fleet.port}", "--seconds", "6")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "/v1/predict/single" in done.stderr and "/v1/predict/batch" in done.stderr


@pytest.mark.parametrize("scenario, users", [("burst", 100), ("sustained", 50)])
def test_locust_scenarios_have_their_users(stand_in: str, scenario: str, users: int) -> None:
    """All of them begin at once."""
    done = locust(stand_in, "--scenario", scenario, "--seconds", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f'"Trader": {users}' in done.stderr


@pytest.mark.parametrize("lie", ["series-id", "request-id", "too-few", "too-late", "null", "negative", "not-json", "refusal"])
def test_locust_finds_a_lie_out(stand_in: str, lie: str) -> None:
    """A wrong answer is a failed request, and a failed request fails the run."""
    assert locust(f"{stand_in}/lie/{lie}", "--seconds", "2").returncode == 1


def test_the_tuning_loop_measures_a_real_fleet(fleet: Live, tmp_path: Path) -> None:
    """Scale, warm, k6, read the workers: every figure of the report is there, and the fleet has its workers back."""
    asked = ("--slo", "p95=2s", "--rate", "8", "--workers", "1,2", "--rounds", "1", "--duration", "3", "--vus-per-worker", "2")
    code, said = fleet.cli("tune", *asked, "-e", "HORIZON=12", "-e", "LOOKBACK=64", "--reports", str(tmp_path))
    assert code == 0, said
    [folder] = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    counts = summary["series"][0]["counts"]
    for count in counts:
        assert count["throughput"]["value"] > 10 and count["p95"]["value"] < 2
        assert set(count["figures"]) >= {"worker", "host", "generator", "queue_s", "inside_s", "outside_s", "occupancy"}
    assert summary["series"][0]["answer"]["workers"] == 1, said
    assert "2 workers" in fleet.cli("status")[1]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert fleet.cli("report", str(folder))[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
