"""From logits to a token: the reference's filters, and a draw by the inverse distribution function.

Knows nothing of models or candles. This is the truth that faster samplers are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """float32 [B, V] logits → probabilities [B, V] that sum to 1; filtered entries are exactly 0.

    After division by the temperature, ``top_k`` > 0 keeps the k best (all that tie with the k-th) and
    ``top_p`` is then ignored. Otherwise ``top_p`` < 1 drops an entry when the probability before it, best
    first, is strictly above top_p; the best always stays. Raises ValueError for a temperature that is not
    positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scaled = logits / temperature
    if top_k > 0:
        kth = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    elif top_p < 1.0:
        ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
        up_to = ranked.softmax(-1).cumsum(-1)
        dropped = torch.zeros_like(up_to, dtype=torch.bool)
        dropped[..., 1:] = up_to[..., :-1] > max(top_p, 0.0)
        scaled = scaled.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return scaled.softmax(-1)


def draw(probabilities: Tensor, u: Tensor) -> Tensor:
    """Inverse distribution function: [B, V] and float64 [B] in [0, 1) → int64 [B].

    The smallest index whose cumulative sum, in float64 and index order, exceeds ``u`` times the total; an
    entry of probability 0 is never drawn. Raises ValueError when a row has no positive, finite total.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1]
    if not bool(((total > 0) & total.isfinite()).all()):
        raise ValueError("nothing to draw from: the probabilities are NaN, infinite or all 0")
    return (cumulative <= (u * total).unsqueeze(-1)).sum(-1)
