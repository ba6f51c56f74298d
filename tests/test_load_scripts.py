"""What the load scripts promise before any load is made: options, dials, and that nothing is fetched."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.api.schema import ForecastResult, PredictBatchResult
from app.metrics import STAGES
from fleet.k6 import ROOT, find
from fleet.load import DIALS, dials_table
from tests.load import stand_in
from tests.load.rig import PLAIN, SCRIPT

FOLDER = ROOT / "tests" / "load"
SCRIPTS = sorted([*FOLDER.glob("*.js"), *FOLDER.glob("lib/*.js")])
REFUSED = 107
# Scenario, k6 scenarios with their executors, users, duration with the 40 s in which answers are waited for.
TABLE: list[tuple[str, dict[str, str], int, str]] = [
    ("baseline", {"baseline": "constant-vus"}, 50, "5m40s"),
    ("open", {"open": "constant-arrival-rate"}, 200, "5m40s"),
    ("ramp", {"ramp": "ramping-arrival-rate"}, 200, "5m40s"),
    ("burst", {"burst": "constant-vus"}, 100, "1m40s"),
    ("sustained", {"sustained": "constant-vus"}, 50, "15m40s"),
    ("mixed", dict.fromkeys(("interactive", "bulk", "repeated"), "constant-vus"), 50, "5m40s"),
    ("repeated", {"repeated": "constant-vus"}, 50, "5m40s"),
]


@pytest.fixture(scope="module")
def k6() -> Path:
    found = find()
    if found is None:
        pytest.skip("no k6 here: `python -m fleet.k6` builds it")
    return found


def inspect(k6: Path, *dials: str) -> subprocess.CompletedProcess[str]:
    arguments = [argument for dial in dials for argument in ("-e", dial)]
    argv = [str(k6), "inspect", "--execution-requirements", *PLAIN[2:], *arguments, SCRIPT]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


def options(k6: Path, *dials: str) -> dict[str, Any]:
    done = inspect(k6, *dials)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("scenario, executors, vus, lasts", TABLE)
def test_scenarios_are_what_the_table_says(k6: Path, scenario: str, executors: dict[str, str], vus: int, lasts: str) -> None:
    """Executor, users, duration, and thresholds that can fail."""
    found = options(k6, f"SCENARIO={scenario}")
    assert {name: each["executor"] for name, each in found["scenarios"].items()} == executors
    assert found["maxVUs"] == vus and found["totalDuration"] == lasts
    thresholds = found["thresholds"]
    assert thresholds["checks"] == ["rate==1"]
    if scenario == "ramp":
        assert thresholds["kronos_goodput{step:1}"] == ["rate>=0.95"]
    else:
        assert thresholds["http_req_failed"] == ["rate<=0.01"]
        assert thresholds["kronos_request_duration{outcome:right}"] == [f"p(95)<={default('P95_MS', scenario)}"]
    assert ("dropped_iterations" in thresholds) is (scenario == "open")
    assert thresholds.get("kronos_cache_hit") == (["rate>0.8"] if scenario == "repeated" else None)
    assert found["tags"]["testid"].startswith(f"{scenario}-")
    assert "p(99)" in found["summaryTrendStats"]


def default(dial: str, scenario: str) -> Any:
    return DIALS[dial].get("by_scenario", {}).get(scenario, DIALS[dial]["default"])


def test_every_scenario_is_tested() -> None:
    """The table above and the dial name the same scenarios."""
    assert [row[0] for row in TABLE] == DIALS["SCENARIO"]["choices"]


def test_a_hit_rate_can_be_asked_of_other_scenarios(k6: Path) -> None:
    """Popular requests at a fixed rate, with the same threshold."""
    assert options(k6, "SCENARIO=open", "POPULAR=8", "MIN_HITS=0.5")["thresholds"]["kronos_cache_hit"] == ["rate>0.5"]


def test_without_a_word_it_is_the_baseline(k6: Path) -> None:
    """`k6 run tests/load/baseline.js` is 50 users for five minutes."""
    assert options(k6)["scenarios"] == options(k6, "SCENARIO=baseline")["scenarios"]


def test_dials_change_the_load(k6: Path) -> None:
    """A rate may be a fraction, steps divide a ramp, a run can be named."""
    found = options(k6, "SCENARIO=open", "RATE=2.5", "DURATION=90s", "VUS=7", "P95_MS=250", "TESTID=mine")
    [scenario] = found["scenarios"].values()
    assert (scenario["rate"], scenario["timeUnit"], scenario["duration"], found["maxVUs"]) == (250, "1m40s", "1m30s", 7)
    assert found["thresholds"]["kronos_request_duration{outcome:right}"] == ["p(95)<=250"]
    assert found["tags"] == {"testid": "mine"}
    [ramp] = options(k6, "SCENARIO=ramp", "RATE=8", "STEPS=4", "DURATION=20s")["scenarios"].values()
    assert [stage["target"] for stage in ramp["stages"]] == [200, 200, 400, 400, 600, 600, 800, 800]
    assert {stage["duration"] for stage in ramp["stages"]} == {"0s", "5s"}


@pytest.mark.parametrize(
    "dials, words",
    [
        (["SCENARIO=nope"], "must be one of baseline, open"),
        (["VUS=many"], "is not a number"),
        (["VUS=1.5"], "is not a whole number"),
        (["VUS=0"], "must be 1 to 10000"),
        (["LOOKBACK=4096"], "must be 2 to 2048"),
        (["DURATION=5"], "must be a time such as 90s"),
        (["DURATION=0s"], "must be a time such as 90s"),
        (["BASE_URL=localhost:8080"], "must begin with http://"),
        (["PRIORITY=urgent"], "must be one of interactive, bulk"),
        (["TESTID=a b"], "must be of letters"),
        (["RATE=5"], "has no effect in baseline; only in open, ramp"),
        (["SCENARIO=mixed", "HORIZON=5"], "has no effect in mixed"),
        (["SCENARIO=mixed", "VUS=2"], "mixed needs 3 users"),
        (["SCENARIO=mixed", "POPULAR=4"], "has no effect in mixed"),
        (["MIN_HITS=80"], "must be 0 to 1"),
    ],
)
def test_wrong_dials_are_refused(k6: Path, dials: list[str], words: str) -> None:
    """A value that cannot be meant, or that would change nothing, stops k6 with the dial's name and what is right."""
    done = inspect(k6, *dials)
    assert done.returncode == REFUSED
    assert f"-e {dials[-1]}: {words}" in done.stderr


def test_nothing_is_fetched() -> None:
    """Scripts import k6's own modules and each other, open local files, and name no address but the fleet's."""
    assert len(SCRIPTS) == 8
    for script in SCRIPTS:
        text = script.read_text()
        sources = re.findall(r"""(?:from|import|require\(|open\()\s*['"]([^'"]+)['"]""", text)
        assert all(re.fullmatch(r"k6(/(execution|http|data|metrics))?|\.{1,2}/.+", source) for source in sources), script
        addresses = re.findall(r"https?://[\w.:-]+", text)
        assert set(addresses) <= {"http://127.0.0.1:8080"}, script


def test_stages_are_the_workers() -> None:
    """The stages that become trends are those the worker has, in its order."""
    text = (FOLDER / "lib" / "metrics.js").read_text()
    [names] = re.findall(r"STAGES = \[(.*?)\]", text, re.DOTALL)
    assert tuple(re.findall(r"'(\w+)'", names)) == STAGES == stand_in.STAGES


def test_the_stand_in_keeps_the_contract() -> None:
    """Its answers are documents of the worker's own schema."""
    asked = {
        "series_id": "a", "candles": [{"close": 10.0}] * 3, "timestamps": ["2024-06-01T00:00:00Z", "2024-06-01T00:05:00Z"],
        "overrides": {"pred_len": 4, "seed": 7}, "quantiles": [0.1, 0.9],
    }  # fmt: skip
    one = msgspec.convert(stand_in.answer_to(asked, "r"), ForecastResult)
    assert [row.timestamp for row in one.prediction] == [f"2024-06-01T00:{minute}:00Z" for minute in (10, 15, 20, 25)]
    assert (one.series_id, one.request_id, one.seed) == ("a", "r", 7)
    batch = msgspec.convert(stand_in.answer_to({"items": [asked, asked]}, "r"), PredictBatchResult)
    assert [msgspec.convert(item, ForecastResult).series_id for item in batch.items] == ["a", "a"]


def test_dials_table_has_every_dial() -> None:
    """README's table comes from the file that the scripts read."""
    rows = dials_table().splitlines()[2:]
    assert [re.match(r"\| `(\w+)` \|", row)[1] for row in rows] == list(DIALS)  # type: ignore[index]
    assert "| `RATE` | 10, ramp 40 |" in dials_table()
