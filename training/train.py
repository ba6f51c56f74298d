"""Train the bundled demo checkpoint: first the tokenizer, then the model on its tokens.

    python -m training.train [--out FOLDER] [--recipe demo|tiny]

Knows the recipe: data mix, losses, schedule, seeds. The model sees teacher-forced windows with exactly the
arithmetic of inference (`Kronos.forward_as_sampled`), normalised by the lookback alone as the service does.
Everything is drawn from the recipe's seed; with one thread the result is bit-identical on the same machine
with the same torch. Nothing under the destination changes until both parts are trained: an interrupted run
leaves the former checkpoint.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.model import modules
from app.model.config import ModelConfig, TokenizerConfig
from app.model.tokenizer import Tokenizer
from app.model.transformer import Kronos
from training import windows

DESTINATION = Path(__file__).parent.parent / "models" / "demo"
# Prices weigh more than volume and amount in the tokenizer's loss: volume is mostly noise, and would take
# their bits.
COLUMN_WEIGHTS = (1.5, 1.5, 1.5, 2.5, 0.4, 0.4)
TOKENIZER_STREAM, MODEL_STREAM = 1, 2  # the second word of the seeds, so that no window is drawn twice


@dataclass(frozen=True)
class Phase:
    """One training run: optimiser steps of about `candles` candles each, cosine schedule from `rate` to a
    twentieth."""

    steps: int
    candles: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int
    tokenizer: TokenizerConfig
    model: ModelConfig
    tokenizer_phase: Phase
    model_phase: Phase
    lookbacks: tuple[int, int] = (40, 400)  # drawn log-uniformly for each step
    max_context: int = 512
    real_share: float = 0.02  # of the windows; more would only be repetition, there are 2,000 real candles


def _recipe(
    seed: int, bits: int, widths: tuple[int, int], layers: int, phases: tuple[Phase, Phase]
) -> Recipe:
    tokenizer = TokenizerConfig(
        d_in=6, d_model=widths[0], n_heads=4, ff_dim=2 * widths[0], n_enc_layers=3, n_dec_layers=3,
        ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, s1_bits=bits, s2_bits=bits,
        beta=0.01, gamma0=1.0, gamma=1.1, zeta=0.1, group_size=bits // 2,
    )  # fmt: skip
    model = ModelConfig(
        s1_bits=bits, s2_bits=bits, n_layers=layers, d_model=widths[1], n_heads=4, ff_dim=2 * widths[1],
        ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, token_dropout_p=0.0, learn_te=True,
    )  # fmt: skip
    return Recipe(seed, tokenizer, model, *phases)


RECIPES = {
    "demo": _recipe(
        20261121, bits=8, widths=(64, 128), layers=3,
        phases=(Phase(2000, 2048, 6e-3), Phase(4500, 2048, 2e-3)),
    ),
    "tiny": _recipe(1, bits=4, widths=(32, 32), layers=1, phases=(Phase(2, 512, 1e-3), Phase(2, 512, 1e-3))),
}  # fmt: skip

Report = Callable[[str], None]
Module = TypeVar("Module", bound=nn.Module)


def train_tokenizer(recipe: Recipe, candles: windows.RealCandles, report: Report = print) -> Tokenizer:
    """Reconstruct windows from all bits and from the coarse bits alone, plus the quantiser's own loss."""
    tokenizer = fresh(recipe.seed, lambda: Tokenizer(recipe.tokenizer))
    column_weights = torch.tensor(COLUMN_WEIGHTS)

    def loss(window: windows.Windows, progress: float) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(window.x)
        out = tokenizer(x)
        coarse = ((out.recon_s1 - x).square() * column_weights).mean()
        full = ((out.recon - x).square() * column_weights).mean()
        close = (out.recon - x)[..., 3].detach().square().mean().sqrt()
        return coarse + full + out.quantiser_loss, {
            "coarse": float(coarse.detach()), "full": float(full.detach()), "close rms": float(close),
        }  # fmt: skip

    drawn = _windows(recipe, recipe.tokenizer_phase, TOKENIZER_STREAM, candles)
    _optimise("tokenizer", tokenizer, recipe.tokenizer_phase, drawn, loss, report)
    return tokenizer


def train_model(
    recipe: Recipe, tokenizer: Tokenizer, candles: windows.RealCandles, report: Report = print
) -> Kronos:
    """Predict the tokens of the next candle. Candles after the lookback count fully, those inside it less and
    less: their statistics know the future, as at inference they never do, but they teach the same dynamics
    early on."""
    model = fresh(recipe.seed, lambda: Kronos(recipe.model))

    def loss(window: windows.Windows, progress: float) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            s1, s2 = tokenizer.encode(torch.from_numpy(window.x))
        stamps = torch.from_numpy(window.stamps[:, :-1])
        coarse, fine = model.forward_as_sampled(s1[:, :-1], s2[:, :-1], stamps, s1[:, 1:])
        ahead = torch.arange(1, s1.shape[1]) >= window.lookback
        share = torch.where(ahead, 1.0, 0.5 * (1.0 - progress)).expand(len(s1), -1).flatten()
        nll = [
            functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), reduction="none")
            for logits, target in ((coarse, s1), (fine, s2))
        ]
        after = ahead.expand(len(s1), -1).flatten()
        shown = {
            name: float(part.detach()[after].mean()) for name, part in zip(("s1", "s2"), nll, strict=True)
        }
        return (share * (nll[0] + nll[1])).sum() / share.sum(), shown

    drawn = _windows(recipe, recipe.model_phase, MODEL_STREAM, candles)
    _optimise("model", model, recipe.model_phase, drawn, loss, report)
    return model


def fresh(seed: int, build: Callable[[], Module]) -> Module:
    """A module whose starting weights depend on the seed alone; torch's global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _windows(
    recipe: Recipe, phase: Phase, stream: int, candles: windows.RealCandles
) -> Iterator[windows.Windows]:
    """The window batches of one phase, one per step; each a function of (seed, stream, step)."""
    shortest, longest = recipe.lookbacks
    for step in range(phase.steps):
        rng = np.random.default_rng((recipe.seed, stream, step))
        lookback = round(math.exp(rng.uniform(math.log(shortest), math.log(longest))))
        ahead = min(lookback, recipe.max_context - lookback)
        count = max(1, phase.candles // (lookback + ahead))
        real = int(rng.binomial(count - 1, recipe.real_share))  # at least one window is synthetic
        yield windows.draw((recipe.seed, stream, step), lookback, ahead, count, real, candles)


def _optimise(
    name: str,
    module: nn.Module,
    phase: Phase,
    drawn: Iterator[windows.Windows],
    loss_of: Callable[[windows.Windows, float], tuple[Tensor, dict[str, float]]],
    report: Report,
) -> None:
    """AdamW over the drawn windows; leaves the module in eval mode, without gradients."""
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.05)
    began, averages = time.monotonic(), dict[str, float]()
    for step, window in enumerate(drawn):
        for group in optimiser.param_groups:
            group["lr"] = phase.rate * _schedule(step, phase.steps)
        loss, shown = loss_of(window, step / phase.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        averages = {key: 0.98 * averages.get(key, value) + 0.02 * value for key, value in shown.items()}
        if step % 50 == 49 or step == phase.steps - 1:
            spent = time.monotonic() - began
            figures = ", ".join(f"{key} {value:.4f}" for key, value in averages.items())
            left = spent / (step + 1) * (phase.steps - step - 1)
            report(
                f"{name} {step + 1}/{phase.steps}: {figures}; {spent / 60:.1f} min, {left / 60:.1f} min left"
            )
    module.eval().requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a cosine from 1 to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.475 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(recipe: Recipe, destination: Path, report: Report = print) -> None:
    """Train both parts and put them under `destination` as tokenizer/ and model/, both or neither."""
    candles = windows.read_real()
    with _repeatable():
        tokenizer = train_tokenizer(recipe, candles, report)
        model = train_model(recipe, tokenizer, candles, report)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".training-") as made:
        modules.save(tokenizer, recipe.tokenizer, Path(made) / "tokenizer")
        modules.save(model, recipe.model, Path(made) / "model")
        for part in ("tokenizer", "model"):
            shutil.rmtree(destination / part, ignore_errors=True)
            (Path(made) / part).rename(destination / part)


@contextmanager
def _repeatable() -> Iterator[None]:
    """One thread and no operation whose result depends on timing; torch's own settings are put back
    afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DESTINATION, help="folder for tokenizer/ and model/")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="demo")
    options = parser.parse_args()
    train(RECIPES[options.recipe], options.out)


if __name__ == "__main__":
    main()
