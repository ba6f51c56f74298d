"""Drawing one token for each row of a batch, every row with its own settings, without leaving the device.

The arithmetic is that of `app.model.sampling`, operation for operation; there the settings are numbers, here they
are tensors, so that the whole draw can be part of a CUDA graph. Nothing is checked here: checks would make the
host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_rows(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """float32 [B, V] logits, float32 [B] temperature, int64 [B] top_k, float32 [B] top_p → probabilities [B, V].

    Row by row what `sampling.filter_probabilities` makes of the same numbers, bit for bit on a CPU.
    """
    scaled = logits / temperature[:, None]
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    kth = ranked.gather(-1, (top_k.clamp(1, logits.shape[-1]) - 1)[:, None])
    before = ranked.softmax(-1).cumsum(-1)[:, :-1]
    above = (before > top_p.clamp(min=0.0)[:, None]) & (top_p < 1.0)[:, None]
    beyond_p = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order[:, 1:], above)
    dropped = torch.where((top_k > 0)[:, None], scaled < kth, beyond_p)
    return scaled.masked_fill(dropped, -torch.inf).softmax(-1)


def draw_rows(probabilities: Tensor, u: Tensor) -> Tensor:
    """`sampling.draw` without its check: [B, V] and float64 [B] in [0, 1) → int64 [B]."""
    cumulative = probabilities.double().cumsum(-1)
    return (cumulative <= (u * cumulative[:, -1])[:, None]).sum(-1)
