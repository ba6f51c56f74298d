"""The simulated fleet: its law file, its noise, its CPU figures, its place behind the protocol."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleet.errors import BadSetting
from fleet.tune import simulate
from fleet.tune.protocol import RunSpec, parse
from fleet.tune.simulate import Law, Noise, Service

OPEN = RunSpec(4, "open", 40.0, None, 20.0, 7, 2)
CLOSED = RunSpec(4, "closed", None, 32, 20.0, 7, 2)
PLAIN = Law(service=Service(family="constant", mean_s=0.05))


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"service": {"mean_s": 0.1}, "workers": 3}', "workers"),
        ('{"service": {"mean_s": 0.1, "median": 3}}', "median"),
        ('{"service": {"mean_s": 0.1}, "noise": {"rnu": 0.1}}', "noise"),
        ('{"service": {"mean_s": 0}}', "mean_s"),
        ('{"service": {"mean_s": 0.1, "family": "cauchy"}}', "cauchy"),
        ('{"serial": 0.1}', "service"),
        ("{", "LAW"),
    ],
)
def test_a_law_with_a_mistake_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    """No misspelt or impossible field goes by in silence."""
    path = tmp_path / "LAW.json"
    path.write_text(text)
    with pytest.raises(BadSetting, match=named):
        simulate.load(path)


@pytest.mark.parametrize("spec", [OPEN, CLOSED])
def test_the_same_seed_gives_the_same_bytes(spec: RunSpec) -> None:
    """A simulated campaign can be repeated; another seed is another run."""
    law = Law(service=Service(mean_s=0.05), noise=Noise(run=0.1, round=0.1))
    other = msgspec.structs.replace(spec, seed=8)
    assert list(simulate.lines(law, spec)) == list(simulate.lines(law, spec)) != list(simulate.lines(law, other))


@pytest.mark.parametrize(
    "law, capacity",
    [
        (PLAIN, 80.0),
        (msgspec.structs.replace(PLAIN, host_cores=2.0), 40.0),
        (msgspec.structs.replace(PLAIN, serial=0.2), 80 / 1.6),
        (msgspec.structs.replace(PLAIN, crosstalk=0.05), 80 / 1.6),
        (msgspec.structs.replace(PLAIN, slots=4, batch_cost=1.0), 80.0),
    ],
)
def test_saturated_throughput_follows_the_law(law: Law, capacity: float) -> None:
    """Four workers of 20 requests a second each: shared cores, σ, κ and batches take their part."""
    points, end = parse(simulate.lines(law, CLOSED), 20.0)
    ended = (points.due + points.latency <= end.duration_s).sum() / end.duration_s
    assert ended == pytest.approx(capacity, rel=0.03)


def test_cpu_tells_the_limits_apart() -> None:
    """A full host shows on the host; workers that wait for each other leave their quota unused; crosstalk burns it."""
    of = {
        name: simulate.cpu(law, CLOSED, simulate.play(law, CLOSED))
        for name, law in {
            "workers": PLAIN,
            "host": msgspec.structs.replace(PLAIN, host_cores=2.0),
            "serial": msgspec.structs.replace(PLAIN, serial=0.2),
            "crosstalk": msgspec.structs.replace(PLAIN, crosstalk=0.05),
        }.items()
    }
    shares = {name: (round(cpu.worker or 0, 1), round(cpu.host or 0, 1)) for name, cpu in of.items()}
    assert shares == {"workers": (1.0, 0.1), "host": (0.5, 1.0), "serial": (0.6, 0.0), "crosstalk": (1.0, 0.1)}


@pytest.mark.parametrize("family, cv", [("lognormal", 0.8), ("gamma", 0.8), ("constant", 0.0), ("pareto", 0.0)])
def test_work_has_the_mean_and_scatter_it_says(family: str, cv: float) -> None:
    """Mean within 2 %; the coefficient of variation where there is one."""
    service = msgspec.convert({"family": family, "mean_s": 0.2, "cv": cv, "tail_index": 6.0}, Service)
    drawn = simulate.works(service, 400_000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(0.2, rel=0.02)
    if family != "pareto":
        assert drawn.std() / drawn.mean() == pytest.approx(cv, abs=0.02)


def test_noise_of_a_round_is_common_to_its_runs() -> None:
    """Paired comparisons need rounds in which the host is equally slow for everybody; drift goes on from round to round."""
    law = Law(service=Service(mean_s=0.1), noise=Noise(round=0.2))
    first, second = (simulate.effect(law, msgspec.structs.replace(OPEN, seed=seed)) for seed in (1, 2))
    assert first == second != simulate.effect(law, msgspec.structs.replace(OPEN, round=3))
    drifting = Law(service=Service(mean_s=0.1), noise=Noise(drift=0.01))
    assert simulate.effect(drifting, OPEN) == pytest.approx(np.exp(0.02))


def test_it_answers_one_document_on_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The verb speaks the runner protocol; what is no run is refused."""
    path = tmp_path / "law.json"
    path.write_bytes(msgspec.json.encode(PLAIN))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(OPEN.to_json())))
    simulate.answer(path)
    lines = capsysbinary.readouterr().out.splitlines()
    points, end = parse(lines, 20.0)
    assert (len(points.due), end.dropped, json.loads(lines[-1])["end"]) == (800, 0, True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"workers": 3}')))
    with pytest.raises(BadSetting, match="no run"):
        simulate.answer(path)
