"""Reading the golden cases (data/goldens/README.md) and judging an answer by a case's own tolerances."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.model import weights

GOLDENS = Path(__file__).parent / "data" / "goldens"
TINY = GOLDENS / "tiny"
TINY_CONTEXT = 64

Case = dict[str, Any]
Array = NDArray[Any]


@functools.cache
def _all_cases() -> list[Case]:
    cases: list[Case] = json.loads((TINY / "cases.json").read_text())["cases"]
    return cases


@functools.cache
def _arrays() -> dict[str, Array]:
    with np.load(TINY / "cases.npz") as file:
        return dict(file)


@functools.cache
def checkpoint(max_context: int = TINY_CONTEXT) -> weights.Checkpoint:
    """The golden checkpoint, loaded once for all tests; nobody may change it."""
    if max_context != TINY_CONTEXT:
        return replace(checkpoint(), max_context=max_context)
    return weights.load(str(TINY / "model"), str(TINY / "tokenizer"), max_context=TINY_CONTEXT)


def cases(*kinds: str) -> list[Case]:
    """All cases of these kinds."""
    return [case for case in _all_cases() if case["kind"] in kinds]


def params(*kinds: str) -> list[Any]:
    """The same as pytest parameters with their ids; one that is informative only may fail."""
    informative = pytest.mark.xfail(
        strict=False, reason="informative: depends on the summation order (trap 2)"
    )
    return [
        pytest.param(case, id=case["id"], marks=() if case["strict"] else informative)
        for case in cases(*kinds)
    ]


def inputs(case: Case) -> dict[str, Array]:
    """Input arrays by name."""
    return {name: _arrays()[spec["npz"]] for name, spec in case["inputs"].items()}


def outputs(case: Case) -> dict[str, Array]:
    """Recorded output arrays by name."""
    return {name: _arrays()[spec["npz"]] for name, spec in case["outputs"].items()}


def fraction_of_tolerance(case: Case, **answers: Array) -> float:
    """Check every output of the case; returns the largest fraction of a tolerance used (exact ones: 0).

    Raises AssertionError naming the output that is wrong, or one of the case that was not answered.
    """
    assert set(answers) == set(case["outputs"]), f"{case['id']}: answered {sorted(answers)}"
    worst = 0.0
    for name, answer in answers.items():
        spec, golden = case["outputs"][name], outputs(case)[name]
        assert answer.shape == golden.shape, (
            f"{case['id']} {name}: shape {answer.shape}, golden {golden.shape}"
        )
        if spec.get("compare") == "exact":
            different = int((answer != golden).sum())
            assert not different, f"{case['id']} {name}: {different} of {golden.size} differ"
            continue
        allowed = np.asarray(spec["atol"]) + spec["rtol"] * np.abs(golden.astype(np.float64))
        gap = np.abs(answer.astype(np.float64) - golden)
        # a tolerance can be smaller than the smallest normal number; no gap is no gap
        used = float(np.where(gap == 0, 0.0, gap / np.maximum(allowed, np.finfo(np.float64).tiny)).max())
        assert used <= 1, f"{case['id']} {name}: {used:.3g} times the tolerance"
        worst = max(worst, used)
    return worst


def stamps(times: list[str]) -> NDArray[np.datetime64]:
    """ISO strings of a case as datetime64[s]."""
    return np.array(times, dtype="datetime64[s]")


def columns(names: list[str], values: Array) -> dict[str, Array | None]:
    """A case's frame [L, C] as columns by name."""
    return {name: values[:, index] for index, name in enumerate(names)}
