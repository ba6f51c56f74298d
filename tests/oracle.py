"""The slow truth: naive, uncached generation, path after path, the whole window recomputed at every step.

Written to be read against the rules of tests/data/goldens/README.md and found right. Every fast path is
tested against it. Nothing outside tests/ may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.model import draws, frames, sampling
from app.model.weights import Checkpoint


@dataclass(frozen=True)
class Generation:
    """What generation yields on the normalised scale, for k sample paths of H candles."""

    history_tokens: NDArray[np.int64]  # [L, 2] s1 and s2 of the whole history
    tokens: NDArray[np.int64]  # [k, H, 2]
    s1_logits: NDArray[np.float32]  # [k, H, V1] as each step drew from them, before temperature
    s2_logits: NDArray[np.float32]  # [k, H, V2]
    decoded: NDArray[np.float32]  # [k, min(L + H, max_context), 6] the last window, history included
    paths: NDArray[np.float32]  # [k, H, 6] the last H rows of it


@dataclass(frozen=True)
class OracleResult(Generation):
    """A generation, with its scale and the mean of its paths in original units."""

    x: NDArray[np.float32]  # [L, 6] normalised history
    mean: NDArray[np.float32]  # [6]
    std: NDArray[np.float32]  # [6]
    pred: NDArray[np.float32]  # [H, 6] mean over paths, original units


def forecast(
    checkpoint: Checkpoint,
    values: NDArray[np.float32],
    history_stamps: NDArray[np.int16],
    future_stamps: NDArray[np.int16],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    sample_count: int,
    seed: int,
    clip: float = frames.CLIP,
) -> OracleResult:
    """Forecast from filled candles float32 [L, 6] (see ``frames.fill_missing``); stamps [L, 5] and [H, 5].

    top_k=1 is greedy. Raises ValueError for stamps that do not fit, or a horizon longer than the context.
    """
    x, mean, std = frames.normalise(values, clip)
    made = generate(
        checkpoint, x, history_stamps, future_stamps,
        temperature=temperature, top_k=top_k, top_p=top_p, sample_count=sample_count, seed=seed,
    )  # fmt: skip
    pred = frames.restore(made.paths.mean(0), mean, std)
    return OracleResult(**vars(made), x=x, mean=mean, std=std, pred=pred)


@torch.no_grad()
def generate(
    checkpoint: Checkpoint,
    x: NDArray[np.float32],
    history_stamps: NDArray[np.int16],
    future_stamps: NDArray[np.int16],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    sample_count: int,
    seed: int,
) -> Generation:
    """As ``forecast``, from a history float32 [L, 6] that is normalised and clipped already."""
    horizon = len(future_stamps)
    if len(history_stamps) != len(x):
        raise ValueError(f"{len(x)} candles with {len(history_stamps)} stamps")
    if not 1 <= horizon <= checkpoint.max_context:
        raise ValueError(f"a horizon of {horizon} does not fit in a context of {checkpoint.max_context}")
    stamps = torch.from_numpy(np.concatenate((history_stamps, future_stamps)).astype(np.int64))[None]
    history = torch.stack(
        checkpoint.tokenizer.encode(torch.from_numpy(x)[None]), dim=-1
    )  # [1, L, 2], never cut here

    paths = []
    for path in range(sample_count):
        uniforms = torch.from_numpy(draws.uniforms(seed, path, horizon))
        tokens, step_logits = history, []
        for step in range(horizon):
            s1_logits, s2_logits, pair = _step(
                checkpoint, tokens, stamps, uniforms[step], temperature=temperature, top_k=top_k, top_p=top_p
            )
            tokens = torch.cat((tokens, pair), dim=1)
            step_logits.append((s1_logits, s2_logits))
        window = tokens[:, -checkpoint.max_context :]
        decoded = checkpoint.tokenizer.decode(window[..., 0], window[..., 1])
        s1_steps, s2_steps = (torch.cat(logits) for logits in zip(*step_logits, strict=True))
        paths.append((tokens[0, -horizon:], s1_steps, s2_steps, decoded[0], decoded[0, -horizon:]))
    return Generation(history[0].numpy(), *(torch.stack(part).numpy() for part in zip(*paths, strict=True)))


def _step(
    checkpoint: Checkpoint,
    tokens: Tensor,
    stamps: Tensor,
    u: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One more candle after tokens [1, n, 2]: its s1 and s2 logits [1, V], and the drawn pair [1, 1, 2].

    The window is the last max_context tokens, each with its own stamp: the stamp of the candle being
    predicted is not seen yet.
    """
    length = tokens.shape[1]
    start = max(0, length - checkpoint.max_context)
    window = tokens[:, start:]
    all_s1_logits, context = checkpoint.model.decode_s1(
        window[..., 0], window[..., 1], stamps[:, start:length]
    )
    s1_logits = all_s1_logits[:, -1]
    s1 = sampling.draw(sampling.filter_probabilities(s1_logits, temperature, top_k, top_p), u[:1])
    s2_logits = checkpoint.model.decode_s2(context, s1[:, None])[:, -1]
    s2 = sampling.draw(sampling.filter_probabilities(s2_logits, temperature, top_k, top_p), u[1:])
    return s1_logits, s2_logits, torch.stack((s1, s2), dim=-1)[:, None]
