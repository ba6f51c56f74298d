"""The studies of real fleets, without fleets: order of runs, how one is made and kept, going on, the catalogue."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks import capacity
from benchmarks.studies import fleets, onerun, study
from benchmarks.studies.catalogue import GROUPS, STUDIES
from benchmarks.studies.fleets import Up
from benchmarks.studies.folder import POINTS, Begun, Folder, RunRecord, store_points
from benchmarks.studies.study import Fleet, Slot, Study, plan
from fleet.errors import BadSetting, LoadFailed
from fleet.k6 import ROOT
from fleet.load import parse_dials
from tests.study_rig import FAST, ORIGIN, SMALL, dropped, make_run, measured, point


@pytest.fixture
def whole(tmp_path: Path) -> Folder:
    """A study that was measured to its end."""
    return measured(Folder(tmp_path / "study"))


def test_every_round_holds_every_variant_once_in_an_order_of_its_own() -> None:
    """Nothing but the variant differs between rounds, so that the hour of the day is in no comparison."""
    slots = plan(SMALL)
    rounds = [[slot.variant.name for slot in slots if slot.round == number] for number in range(1, 7)]
    assert {tuple(sorted(names)) for names in rounds} == {("fast", "fast-again", "slow")}
    assert len({tuple(names) for names in rounds}) > 1
    assert [slot.id for slot in slots[18:]] == ["once-long"]


def test_more_rounds_leave_the_earlier_ones_as_they_were() -> None:
    """So a study can be given more rounds after it was measured."""
    more = msgspec.structs.replace(SMALL, rounds=8)
    assert plan(more)[:18] == plan(SMALL)[:18]


def test_variants_of_a_round_get_the_same_requests() -> None:
    """The seed is the round's, and no dial leaks from one variant to another."""
    dials = {slot.id: SMALL.dials_of(slot, "http://x") for slot in plan(SMALL)}
    assert dials["r02-slow"] == dials["r02-fast-again"] != dials["r03-fast"]
    assert dials["r02-slow"]["DURATION"] == "10s"
    assert dials["once-long"]["DURATION"] == "20s"


def test_points_are_stored_without_what_nobody_reads(tmp_path: Path) -> None:
    """The same points make the same file, and nothing that figures need is lost."""
    kept = [point(1.0, 0.1), dropped(2.0)]
    other = [b'{"type":"Metric","metric":"kronos_request_duration"}\n', point(1.0, 1.0).replace(b"request", b"stage")]
    raw = tmp_path / "raw.json.gz"
    raw.write_bytes(gzip.compress(b"".join([other[0], kept[0], other[1], kept[1]])))
    for name in ("a", "b"):
        store_points(raw, tmp_path / name)
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b"".join(kept)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes()[4:8] == bytes(4)  # no time of packing


def test_a_run_that_was_interrupted_was_never_there(whole: Folder) -> None:
    """Its folder is still called .part; the plan has it made again, and only it."""
    (whole.raw / "r03-fast").rename(whole.raw / "r03-fast.part")
    assert [slot.id for slot in capacity.missing(SMALL, whole)] == ["r03-fast"]
    assert "r03-fast" not in {record.id for record in whole.records()}


def test_a_folder_goes_on_with_its_own_study_only(whole: Folder) -> None:
    """More rounds may come; another load, or another machine, belongs into another folder."""
    assert whole.begin(Begun(msgspec.structs.replace(SMALL, rounds=8), ORIGIN)).study.rounds == 8
    with pytest.raises(BadSetting, match="another plan"):
        whole.begin(Begun(msgspec.structs.replace(SMALL, seconds=11), ORIGIN))
    with pytest.raises(BadSetting, match="another machine"):
        whole.begin(Begun(SMALL, msgspec.structs.replace(ORIGIN, machine={"cores": 64})))


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C takes the fleets down and loses the run under way; the same call makes the rest, and the same report."""
    folder = Folder(tmp_path)
    made: list[str] = []
    ended: list[str] = []

    def measure(_study: Study, slot: Slot, _up: Up, _k6: Path, into: Folder) -> RunRecord:
        if len(made) == 7 and not ended:
            into.draft(slot.id)
            raise KeyboardInterrupt
        made.append(slot.id)
        return make_run(into, slot)

    @contextmanager
    def side_by_side(_study: Study, wanted: Sequence[Fleet], _console: Console) -> Iterator[dict[str, Up]]:
        try:
            yield {fleet.name: Up(fleet, "p", "http://127.0.0.1:1") for fleet in wanted}
        finally:
            ended.append("down")

    monkeypatch.setattr(onerun, "measure", measure)
    monkeypatch.setattr(onerun, "warm", lambda _up, _k6: None)
    monkeypatch.setattr(fleets, "side_by_side", side_by_side)
    monkeypatch.setattr(capacity, "find_or_build", lambda _say: Path("k6"))
    monkeypatch.setattr(capacity, "origin", lambda _runner, _root: ORIGIN)
    with pytest.raises(KeyboardInterrupt):
        capacity.measure(SMALL, folder, Console(quiet=True))
    assert ended == ["down"]
    capacity.measure(SMALL, folder, Console(quiet=True))
    assert made == [slot.id for slot in plan(SMALL)]
    assert capacity.missing(SMALL, folder) == []


QUIET = msgspec.structs.replace(SMALL, prometheus=False)
NOWHERE = Up(FAST, "p", "http://127.0.0.1:1")


class NoClock:
    """Of a fleet without containers."""

    def __init__(self, _project: str, _services: tuple[str, ...]) -> None: ...


def a_k6(folder: Path, *lines: str) -> Path:
    """A program that stands in for k6; ``$out`` is where its raw points go."""
    program = folder / "k6"
    out = 'for a in "$@"; do case "$a" in --out=json=*) out="${a#--out=json=}";; esac; done'
    program.write_text("\n".join(["#!/bin/sh", out, *lines]) + "\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("code", [0, 99])
def test_a_run_keeps_what_k6_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Points, exit code and its meaning; a threshold that failed is a result."""
    monkeypatch.setattr(onerun, "Clock", NoClock)
    (tmp_path / "points").write_bytes(gzip.compress(point(1.0, 0.5)))
    folder, slot = Folder(tmp_path), plan(SMALL)[0]
    folder.raw.mkdir()
    k6 = a_k6(tmp_path, f'cp {tmp_path}/points "$out"', f"exit {code}")
    record = onerun.measure(QUIET, slot, NOWHERE, k6, folder)
    assert (record.code, folder.records(), folder.points(slot.id)) == (code, [record], [point(1.0, 0.5)])
    assert {file.name for file in (folder.raw / slot.id).iterdir()} == {POINTS, "run.json"}


def test_a_run_that_k6_could_not_make_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the place where k6 says why; nothing is stored, so the same command tries it again."""
    monkeypatch.setattr(onerun, "Clock", NoClock)
    folder, slot = Folder(tmp_path), plan(SMALL)[0]
    folder.raw.mkdir()
    with pytest.raises(LoadFailed, match="the script refused") as failed:
        onerun.measure(QUIET, slot, NOWHERE, a_k6(tmp_path, "echo because", "exit 107"), folder)
    assert (folder.raw / f"{slot.id}.part" / onerun.SAID).read_text() == "because\n"
    assert str(folder.raw / f"{slot.id}.part" / onerun.SAID) in failed.value.then
    assert folder.done() == set()


def test_nothing_is_left_of_k6_after_ctrl_c(tmp_path: Path) -> None:
    """It runs in a session of its own, so nobody else would end it."""
    k6 = a_k6(tmp_path, "sleep 60")
    with pytest.raises(KeyboardInterrupt), onerun.running(k6, {}, tmp_path) as process:
        raise KeyboardInterrupt
    assert process.poll() is not None


def test_the_clocks_are_read_at_the_edges_and_between_the_pieces() -> None:
    """Never after the load's end: a fleet at rest would be taken for a fast one."""
    assert onerun.moments(30.0, 0.0) == [study.START_S + 10.0, study.START_S + 28.5]
    pieces = onerun.moments(900.0, 60.0)
    assert len(pieces) == 17
    assert pieces[0] == study.START_S
    assert pieces[-1] < study.START_S + 900.0


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_study_of_the_catalogue_is_whole(name: str) -> None:
    """Its pairs, twins and texts name variants it has, its dials exist, its edits still find their text."""
    found = STUDIES[name]
    variants = {variant.name: variant for variant in found.variants}
    named = [*found.texts.values(), *(each for pair in found.pairs for each in pair)]
    assert set(named) <= set(variants)
    for variant in found.variants:
        assert found.fleet_of(variant)
        assert parse_dials(None, [f"{key}={value}" for key, value in variant.dials.items()]) == variant.dials
        if variant.twin_of:
            twin = variants[variant.twin_of]
            assert (twin.fleet, twin.dials) == (variant.fleet, variant.dials)
    for fleet in found.fleets:
        for path, replacements in fleet.edits.items():
            assert fleets.edited((ROOT / path).read_text(), replacements) != (ROOT / path).read_text()


def test_an_edit_that_finds_nothing_is_refused() -> None:
    """Else two equal fleets would be compared, and found equal."""
    with pytest.raises(BadSetting, match="to replace"):
        fleets.edited("a b c", {"d": "e"})


def test_a_study_is_asked_for_by_name_or_group() -> None:
    """Given rounds and seconds replace its own; an unknown name is refused with those there are."""
    assert [each.name for each in capacity.studies(["users", "alternatives"], None, None)] == ["users", *GROUPS["alternatives"]]
    [changed] = capacity.studies(["workers"], 2, 5.0)
    assert (changed.rounds, changed.seconds) == (2, 5.0)
    with pytest.raises(BadSetting, match="no study"):
        capacity.studies(["worker"], None, None)
