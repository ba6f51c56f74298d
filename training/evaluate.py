"""Judge the demo checkpoint on candles that training never saw, against naive baselines.

    python -m training.evaluate [--checkpoint FOLDER]

Knows which data are held out, what is asked of the engine, and how scores are gathered; writes
evaluation.json and the tables of MODEL_CARD.md from it. Forecasts come from the served engine (app.engine),
one path of arithmetic for users and for these figures. Everything but the engine's own floating point is a
function of `SEED`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app.admission import Limits
from app.engine import Engine
from app.model import frames, weights
from app.model.runner import build_runner
from app.permit import Permit, Ticket
from app.work import Forecast
from training import baselines, card, scoring, synthetic, windows
from training.train import DESTINATION, RECIPES

SEED = 977
EVALUATION_STREAM = 3  # the second word of the seeds: training uses 1 and 2
PATHS = 30
NUM_SLOTS = 64
TOP_P = (1.0, 0.9)  # the whole distribution, and the service's default
PATIENCE_S = 3600.0
IN_FLIGHT = 16  # series submitted at a time; the engine batches their paths
EVALUATION, MODEL_CARD = "evaluation.json", "MODEL_CARD.md"
CLOSE = frames.COLUMNS.index("close")

Floats = NDArray[np.float64]
Forecaster = Callable[[windows.Windows, int, float], NDArray[np.float32]]


@dataclass(frozen=True)
class Setting:
    """Held-out windows of one kind: `series` windows of `lookback` candles, `horizon` to forecast."""

    name: str
    lookback: int
    horizon: int
    series: int  # 0: the held-out part of the real candles, as many windows as fit without sharing a future


SETTINGS = (
    Setting("synthetic, 96 to 24", 96, 24, 400),
    Setting("synthetic, 256 to 48", 256, 48, 400),
    Setting("real, 96 to 24", 96, 24, 0),
    Setting("real, 256 to 48", 256, 48, 0),
)


def held_out(setting: Setting) -> tuple[windows.Windows, tuple[tuple[str, ...], ...]]:
    """The windows of a setting, and for each grouping of them (regime, spacing) the name of each one's
    group."""
    length = setting.lookback + setting.horizon
    if setting.series:
        drawn = synthetic.generate((SEED, EVALUATION_STREAM, setting.lookback), setting.series, length)
        return windows.cut(drawn.values, drawn.times, setting.lookback), (drawn.regimes, drawn.spacings)
    real = windows.read_real()
    first, last = real.held_out_from - setting.lookback, len(real.values) - length
    return real.at(np.arange(first, last + 1, setting.horizon), length, setting.lookback), ()


def evaluate(setting: Setting, forecast: Forecaster) -> dict[str, Any]:
    """All forecasters on one setting, as plain JSON values."""
    cut, groupings = held_out(setting)
    std, mean = (
        part[:, None, CLOSE].astype(np.float64) for part in (cut.std + np.float32(frames.EPSILON), cut.mean)
    )
    closes = (cut.values[..., CLOSE] - mean) / std
    history, actual = closes[:, : setting.lookback], closes[:, setting.lookback :]
    scale = 100.0 * std[:, 0] / cut.values[:, setting.lookback - 1, CLOSE]
    ours = {
        f"demo, top_p {top_p:g}": scoring.score_samples(
            np.moveaxis(forecast(cut, setting.horizon, top_p)[..., CLOSE], 1, -1).astype(np.float64),
            actual,
            scale,
        )
        for top_p in TOP_P
    }
    naive = {
        name: scoring.score_cone(make(history, setting.horizon), actual, scale)
        for name, make in baselines.BASELINES.items()
    }
    changes = {
        name: {other: _changes(mine, theirs) for other, theirs in naive.items()}
        for name, mine in ours.items()
    }
    whole = ours[f"demo, top_p {TOP_P[0]:g}"]
    return asdict(setting) | {
        "series": len(actual),
        "forecasters": {name: _summary(scores) for name, scores in (ours | naive).items()},
        "changes": changes,
        "groups": [row for names in groupings for row in _by_group(names, whole, naive)],
    }


def _summary(scores: scoring.Scores) -> dict[str, Any]:
    return {
        "mae": float(scores.mae.mean()),
        "rmse": float(np.sqrt(scores.mse.mean())),
        "percent": float(scores.percent.mean()),
        "crps": float(scores.crps.mean()),
        "pinball": float(scores.pinball.mean()),
        "coverage": asdict(scoring.bootstrap_mean(scores.coverage, SEED)),
    }


def _changes(ours: scoring.Scores, theirs: scoring.Scores) -> dict[str, Any]:
    return {
        score: asdict(scoring.bootstrap_change(getattr(ours, score), getattr(theirs, score), SEED))
        for score in ("mae", "mse", "crps", "pinball")
    }


def _by_group(
    names: Sequence[str], ours: scoring.Scores, naive: dict[str, scoring.Scores]
) -> list[dict[str, Any]]:
    """Point error against the last value and CRPS against historical volatility, for each group of series."""
    rows = []
    for name in dict.fromkeys(sorted(names)):
        chosen = np.array(names) == name
        point = scoring.bootstrap_change(ours.mae[chosen], naive["last value"].mae[chosen], SEED)
        spread = scoring.bootstrap_change(
            ours.crps[chosen], naive["historical volatility"].crps[chosen], SEED
        )
        rows.append({
            "group": name,
            "series": int(chosen.sum()),
            "mae_to_last_value": asdict(point),
            "crps_to_historical_volatility": asdict(spread),
            "coverage": float(ours.coverage[chosen].mean()),
        })  # fmt: skip
    return rows


def forecaster(engine: Engine) -> Forecaster:
    """`PATHS` sample paths per window from a running engine: float32[series, paths, horizon, 6],
    normalised."""

    def forecast(cut: windows.Windows, horizon: int, top_p: float) -> NDArray[np.float32]:
        begun: deque[tuple[Permit, Ticket]] = deque()
        paths = []
        for index, (x, stamps) in enumerate(zip(cut.x, cut.stamps, strict=True)):
            work = Forecast(
                history=x[: cut.lookback],
                history_stamps=stamps[: cut.lookback],
                future_stamps=stamps[cut.lookback :],
                top_p=top_p,
                sample_count=PATHS,
                seed=index,
            )
            if len(begun) == IN_FLIGHT:
                paths.append(_collect(begun))
            permit = engine.reserve("bulk")
            begun.append((permit, permit.submit(work, time.monotonic() + PATIENCE_S)))
        while begun:
            paths.append(_collect(begun))
        return np.stack(paths)

    return forecast


def _collect(begun: deque[tuple[Permit, Ticket]]) -> NDArray[np.float32]:
    permit, ticket = begun.popleft()
    with permit:
        outcome = ticket.future.result()
    if outcome.paths is None:
        raise RuntimeError("a forecast came back without paths")
    return outcome.paths


def describe(folder: Path, module: nn.Module) -> dict[str, Any]:
    """Size and hash of one part of a checkpoint."""
    content = (folder / weights.WEIGHTS_FILE).read_bytes()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def run(folder: Path) -> dict[str, Any]:
    """Evaluate the checkpoint in `folder` (tokenizer/ and model/) on every setting."""
    checkpoint = weights.load(str(folder / "model"), str(folder / "tokenizer"))
    limits = Limits(max_requests=4 * IN_FLIGHT, max_work=2 * IN_FLIGHT * PATHS * checkpoint.max_context)
    engine = Engine(build_runner(checkpoint, num_slots=NUM_SLOTS, device="cpu"), limits=limits)
    engine.start()
    engine.prewarm()
    try:
        settings = [evaluate(setting, forecaster(engine)) for setting in SETTINGS]
    finally:
        engine.stop()
    parts = {"tokenizer": checkpoint.tokenizer, "model": checkpoint.model}
    return {
        "paths": PATHS,
        "recipe": asdict(RECIPES["demo"]),
        "checkpoint": {name: describe(folder / name, module) for name, module in parts.items()},
        "settings": settings,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, default=DESTINATION, help="folder with tokenizer/ and model/"
    )
    folder: Path = parser.parse_args().checkpoint
    evaluation = run(folder)
    (folder / EVALUATION).write_text(json.dumps(evaluation, indent=1) + "\n")
    model_card = folder / MODEL_CARD
    if model_card.exists():
        model_card.write_text(card.render(model_card.read_text(), evaluation))
    print(card.scores(evaluation), card.changes(evaluation), card.groups(evaluation), sep="\n\n")


if __name__ == "__main__":
    main()
