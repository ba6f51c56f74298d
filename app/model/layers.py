"""The parts both transformers are built of: norm, feed-forward, rotary attention, block.

Plain eager torch, written for exactness and training; knows no cache and no batching of requests.
Module attributes carry the names of the published tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-5
ROTARY_BASE = 10000.0


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + ε) · weight`` over the last axis, in float32 (RMSNorm, arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPSILON)
        return normed.to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """SwiGLU without biases: ``w2(silu(w1 x) · w3 x)`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ff_dim, bias=False)
        self.w3 = nn.Linear(d_model, ff_dim, bias=False)
        self.w2 = nn.Linear(ff_dim, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] → [..., d_model]."""
        out: Tensor = self.dropout(self.w2(functional.silu(self.w1(x)) * self.w3(x)))
        return out


def rotary_frequencies(head_dim: int) -> Tensor:
    """``10000^(-2i/head_dim)`` for i < head_dim/2, float32 (Su et al. 2021, arXiv 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return torch.pow(ROTARY_BASE, -exponents)  # a number ** a tensor would import torch's compiler, which takes 1 s


def rotate(x: Tensor, inv_freq: Tensor) -> Tensor:
    """Turn [B, heads, T, head_dim] by its positions 0..T-1; first and second half of a head make pairs."""
    positions = torch.arange(x.shape[-2], dtype=torch.float32, device=x.device)
    angles = torch.outer(positions, inv_freq)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)


class Rotary(nn.Module):
    """The stored frequencies. They stay float32 when the module is cast: bfloat16 ruins the angles."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary_frequencies(head_dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


class Attention(nn.Module):
    """Multi-head attention with biases; queries from one sequence, keys and values from another."""

    def __init__(self, d_model: int, n_heads: int, attn_dropout: float, resid_dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attn_dropout = attn_dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.rotary = Rotary(d_model // n_heads)
        self.resid_dropout = nn.Dropout(resid_dropout)

    def forward(self, query: Tensor, memory: Tensor, *, causal: bool, rotary: bool) -> Tensor:
        """query [B, Q, d], memory [B, T, d] → [B, Q, d]; ``rotary`` turns both by their positions from 0."""
        q = self._heads(self.q_proj(query))
        k, v = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        if rotary:
            q, k = rotate(q, self.rotary.inv_freq), rotate(k, self.rotary.inv_freq)
        dropout = self.attn_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
        out: Tensor = self.resid_dropout(self.out_proj(mixed.transpose(1, 2).flatten(2)))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)  # [B, heads, T, head_dim]


class Block(nn.Module):
    """Pre-norm block: causal rotary self attention, then feed-forward, each added to its input."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        *,
        ffn_dropout: float,
        attn_dropout: float,
        resid_dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(d_model)
        self.self_attn = Attention(d_model, n_heads, attn_dropout, resid_dropout)
        self.norm2 = RMSNorm(d_model)
        self.ffn = FeedForward(d_model, ff_dim, ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d]."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, causal=True, rotary=True)
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


def initialise(module: nn.Module) -> None:
    """Starting values for training: Xavier for matrices, zero biases, embeddings of variance 1/width."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)
