"""A campaign in its folder: raw data, repeats, resuming, reports, the command line."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from fleet.__main__ import main as fleet_main
from fleet.errors import BadSetting
from fleet.tune import __main__ as entry
from fleet.tune import cli, report, simulate
from fleet.tune.plan import Plan
from fleet.tune.protocol import RunSpec
from fleet.tune.raw import Folder
from fleet.tune.runner import RunResult
from fleet.tune.session import PREDICTIONS
from tests.tune import rigs

pytestmark = pytest.mark.usefixtures("quick_model")

ROOT = Path(__file__).resolve().parents[1]


def fingerprints(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of each run without the time at which it was made."""
    found = []
    for line in (path / "runs" / "SHA256SUMS").read_text().splitlines():
        name = line.split("  ")[1]
        head, _, rest = gzip.decompress((path / "runs" / name).read_bytes()).partition(b"\n")
        found.append((name, json.dumps({**json.loads(head), "begun": ""}).encode() + rest))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One campaign from beginning to end; tests must not change it."""
    path = tmp_path_factory.mktemp("campaign") / "2026-01-01-whole"
    rigs.session(path, rigs.Simulated()).go_on()
    report.write(Folder(path))
    return path


@cache
def runs_of(path: Path) -> int:
    return len(fingerprints(path))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.75, 0.95])
def test_an_interrupted_campaign_ends_like_one_that_was_not(tmp_path: Path, whole: Path, share: float) -> None:
    """Ctrl-C at any run, then the same command: the same runs in the same order, and the same prediction."""
    path = tmp_path / "2026-01-01-whole"
    with pytest.raises(KeyboardInterrupt):
        rigs.session(path, rigs.Simulated(stop_after=int(share * runs_of(whole)))).go_on()
    (path / "runs" / "9999-half-written.jsonl.gz").write_bytes(b"half")
    rigs.session(path, rigs.Simulated()).go_on()
    assert fingerprints(path) == fingerprints(whole)
    again, first = (json.loads((folder / PREDICTIONS).read_text())["predictions"] for folder in (path, whole))
    assert again == first


def test_a_finished_campaign_measures_nothing_more(whole: Path) -> None:
    """The command is safe to repeat."""
    runner = rigs.Simulated()
    rigs.session(whole, runner).go_on()
    assert runner.made == 0


def test_the_report_comes_from_raw_data_byte_for_byte(tmp_path: Path, whole: Path) -> None:
    """Elsewhere, later, twice: the same three files."""
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    for name in ("summary.json", "report.md", "report.html"):
        (copy / name).unlink()
    report.write(Folder(copy))
    for name in ("summary.json", "report.md", "report.html"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()


def test_the_prediction_is_older_than_the_runs_it_is_about(whole: Path) -> None:
    """It names the runs it was made from; none of them is of the held-out count, and the report checks it."""
    said = json.loads((whole / PREDICTIONS).read_text())
    folder = Folder(whole)
    held_out = folder.campaign().plan.held_out
    made_from = [record for record in folder.records() if record.sha256 in said["made_from"]]
    assert made_from and all(record.slot.workers != held_out for record in made_from)
    begun = [record.begun for record in folder.records() if record.slot.stage == "held-out"]
    assert said["written"] <= min(begun)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["series"][0]["held_out"]["matches"] is True


def test_a_prediction_that_was_changed_afterwards_is_noticed(tmp_path: Path, whole: Path) -> None:
    """The report says that the raw runs give another one."""
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    said = json.loads((copy / PREDICTIONS).read_text())
    said["predictions"][0][1]["quantile"] *= 0.9
    (copy / PREDICTIONS).write_text(json.dumps(said))
    report.write(Folder(copy))
    assert "**another prediction**" in (copy / "report.md").read_text()


def test_the_summary_answers_every_question(whole: Path) -> None:
    """The count, its proof, one lost, the old rule, the law, the limit, cost: all there and right for a known fleet."""
    summary = json.loads((whole / "summary.json").read_text())
    series = summary["series"][summary["best"]]
    answer = series["answer"]
    assert (answer["workers"], answer["proven"], answer["with_one_lost"], answer["naive"]) == (3, True, 4, 4)
    assert answer["cost_per_million"] == pytest.approx(0.1 * 3 / 3600 / 25 * 1e6, rel=1e-5)
    assert answer["again"] == [1, 1] and answer["lost"] == [0, 1]
    assert series["law"]["parameters"]["per_worker"]["value"] == pytest.approx(10, rel=0.06)
    assert [count["workers"] for count in series["counts"]] == [1, 2, 3, 4, 5]
    assert series["counts"][0]["chance"]["p"] < 0.01 and series["counts"][4]["chance"]["p"] > 0.9
    words = (whole / "report.md").read_text()
    assert "**3 workers" in words and "Old rule" in words and "held-out" in words


def test_the_page_needs_no_network(whole: Path) -> None:
    """Nothing in report.html is fetched from anywhere; pictures are inside."""
    page = (whole / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page and "@import" not in page and "<script" not in page and "<link" not in page


def test_the_same_output_is_the_same_file(whole: Path) -> None:
    """A run's hash depends on what was measured: the compressed file holds no time of its own."""
    for file in (whole / "runs").glob("*.gz"):
        assert file.read_bytes()[4:8] == bytes(4)


def test_raw_data_that_changed_is_refused(tmp_path: Path, whole: Path) -> None:
    """One byte of one run: nothing is concluded any more, and the file is named."""
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    victim = sorted((copy / "runs").glob("*.gz"))[3]
    content = bytearray(victim.read_bytes())
    content[30] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(BadSetting, match=victim.name):
        report.write(Folder(copy))


class Moody(rigs.Simulated):
    """Spoils each third run in turn: dies, prints nonsense, forgets the end."""

    def spoil(self, result: RunResult) -> RunResult:
        lines = result.output.splitlines(keepends=True)
        bad = [RunResult(b"", "exit code 1"), RunResult(b"Traceback\n" + result.output), RunResult(b"".join(lines[:-1]))]
        return bad[self.made // 3 % 3] if self.made % 3 == 0 else result


def test_invalid_runs_are_repeated_reported_and_never_averaged_in(tmp_path: Path, whole: Path) -> None:
    """A third of all runs fails: each is made again, the report lists them, and the answer is the same."""
    path = tmp_path / "moody"
    records = rigs.session(path, Moody()).go_on()
    failed = [record for record in records if record.failure]
    assert len(failed) >= len(records) // 3
    assert all(any(other.slot == record.slot and not other.failure for other in records) for record in failed)
    found = report.write(Folder(path))
    assert len(found.series[0].invalid) >= len(failed)
    assert found.series[0].answer.workers == 3
    reasons = " ".join(found.series[0].invalid)
    assert "exit code 1" in reasons and "not of the protocol" in reasons and "closing line is missing" in reasons


class Broken:
    """Never works."""

    made = 0

    def run(self, spec: RunSpec) -> RunResult:
        self.made += 1
        return RunResult(b"", "exit code 127: docker: not found")


def test_a_runner_that_never_works_ends_the_campaign_soon(tmp_path: Path) -> None:
    """After two places in the plan were given up, with its last words."""
    runner = Broken()
    with pytest.raises(BadSetting, match="docker: not found"):
        rigs.session(tmp_path / "broken", runner).go_on()
    assert runner.made == 6


def test_a_fleet_that_is_too_small_is_an_answer(tmp_path: Path) -> None:
    """No count suffices: the report says so, and does not recommend the least bad."""
    slow = simulate.Law(service=simulate.Service(mean_s=0.5, cv=0.3))
    path = tmp_path / "small"
    rigs.session(path, rigs.Simulated(slow)).go_on()
    found = report.write(Folder(path))
    assert found.series[0].answer.workers is None
    assert "No measured count" in (path / "report.md").read_text()


def test_a_slow_generator_is_blamed_and_nothing_is_recommended(tmp_path: Path) -> None:
    """What could not be measured is not concluded: the campaign ends early and names the generator."""
    law = simulate.Law(service=simulate.Service(mean_s=0.02), generator=simulate.Generator(max_rate=8))
    path = tmp_path / "generator"
    records = rigs.session(path, rigs.Simulated(law)).go_on()
    found = report.write(Folder(path))
    assert found.series[0].bottleneck.verdict == "generator" and found.series[0].answer.workers is None
    assert {record.slot.round for record in records} == {0}


def test_a_grid_is_swept_and_the_best_setting_wins(tmp_path: Path) -> None:
    """Threads make a worker faster: with two of them fewer workers do, and each setting has its own answer."""
    grid: tuple[dict[str, float | str], ...] = ({"threads": 1.0}, {"threads": 2.0})
    made: Plan = rigs.plan(grid=grid, workers=(1, 2, 3, 4))
    path = tmp_path / "grid"
    rigs.session(path, rigs.Simulated(), made).go_on()
    found = report.write(Folder(path))
    assert [series.settings for series in found.series] == list(grid)
    first, second = (series.answer.workers for series in found.series)
    assert (first, second, found.best) == (3, 2, 1)


@pytest.mark.slow
def test_each_axis_of_a_grid_has_its_law(tmp_path: Path) -> None:
    """Threads with a serial share of 0.3 follow Amdahl's law along their axis; an axis of two values has none."""
    law = msgspec.structs.replace(rigs.LAW, thread_serial=0.3)
    grid = tuple({"threads": float(threads), "slots": float(slots)} for threads in (1, 2, 4, 8) for slots in (1, 2))
    made = rigs.plan(grid=grid, workers=(1, 2, 3), rounds=3, most_runs=3, confirm=0)
    path = tmp_path / "axes"
    rigs.session(path, rigs.Simulated(law), made).go_on()
    found = report.write(Folder(path)).axes
    assert list(found) == ["threads"] and list(found["threads"]) == ["3 workers, slots 1", "3 workers, slots 2"]
    along = found["threads"]["3 workers, slots 1"]
    assert along.family == "amdahl" and along.parameters["sigma"].value == pytest.approx(0.3, abs=0.05)
    assert "## Law along threads" in (path / "report.md").read_text()


def tune(tmp_path: Path, *more: str) -> list[str]:
    law = tmp_path / "law.json"
    law.write_bytes(msgspec.json.encode(rigs.LAW))
    runner = f"exec:{shlex.quote(sys.executable)} -m fleet.tune simulate {shlex.quote(str(law))}"
    wanted = ["--slo", "p95=300ms", "--rate", "25", "--workers", "3,4", "--duration", "6"]
    return ["tune", *wanted, "--runner", runner, "--reports", str(tmp_path / "reports"), "--name", "try", *more]


@pytest.mark.slow
def test_the_command_line_from_plan_to_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, tune on an executable, report, compare: each says what it did."""
    monkeypatch.chdir(ROOT)
    assert entry.main(tune(tmp_path, "--plan")) == 0
    assert "minutes" in capsys.readouterr().out and not (tmp_path / "reports").exists()
    assert entry.main(tune(tmp_path)) == 0
    assert "3 workers" in capsys.readouterr().out
    [folder] = (tmp_path / "reports").iterdir()
    assert entry.main(["report", str(folder)]) == 0
    assert entry.main(["compare", f"{folder}:workers=3", f"{folder}:workers=4"]) == 0
    said = capsys.readouterr().out
    assert "throughput at saturation, 3 → 4 workers: undecided" in said and "A/A floor" in said
    assert entry.main(tune(tmp_path, "--seed", "2")) == BadSetting.code
    assert "another --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, then",
    [
        (["tune", "--slo", "fast", "--rate", "1"], "--slo p95=500ms"),
        (["tune", "--slo", "p95=1s", "--rate", "1", "--runner", "magic"], "exec:"),
        (["tune", "--slo", "p95=1s", "--rate", "1", "--runner", "exec:"], "exec:"),
        (["tune", "--slo", "p95=1s", "--rate", "1", "--name", "../x"], "--name"),
        (["tune", "--slo", "p95=1s", "--rate", "1", "--duration", "-1"], "--duration"),
        (["report", "/no/such/folder"], "fleet tune"),
        (["compare", "/no/such", "/folder"], "fleet tune"),
        (["compare", "a:workers=x", "b"], "workers=3"),
    ],
)
def test_mistakes_say_what_to_type_instead(
    argv: list[str], then: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every error tells the next command."""
    monkeypatch.chdir(tmp_path)
    assert entry.main(argv) == BadSetting.code
    assert then in capsys.readouterr().err


def test_all_verbs_have_a_function() -> None:
    """What the parser knows can be done."""
    assert set(cli.VERBS) == {"tune", "simulate", "report", "compare"}


def test_the_environment_that_was_given_is_the_one_that_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """``main`` may be called with another than the process's: settings of new workers, and which runtime is meant, are in it."""
    asked = ["tune", "--slo", "p95=1s", "--rate", "5", "--workers", "1"]
    assert fleet_main(asked, {"FLEET_RUNTIME": "elsewhere"}) == BadSetting.code
    assert "elsewhere" in capsys.readouterr().err
