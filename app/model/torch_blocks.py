"""The parts of inference in torch: packed layers, transformer blocks, rotary turns, attention, the paged cache.

Knows tensors, one device and one storage type; nothing of tokens, rows or requests. The residual stream, norms and
rotary angles are float32 whatever the storage type is (rotary angles rounded to bfloat16 are noise).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.model.layers import NORM_EPSILON, Block, RMSNorm
from app.pages import PAGE_SIZE

Turn = tuple[Tensor, Tensor]
"""Cosines and sines, [B or 1, T, 1, 1, head_dim]: they turn queries and keys of all heads at once."""


class Packed:
    """Linear layers of one input side by side: x [..., K] → [..., ΣN], in the storage type."""

    def __init__(self, *layers: nn.Linear, device: torch.device, dtype: torch.dtype) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers]).to(device, dtype)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases).to(device, dtype) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Norm:
    """`layers.RMSNorm` of a float32 input."""

    def __init__(self, norm: RMSNorm, device: torch.device) -> None:
        self.weight = norm.weight.detach().to(device)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, NORM_EPSILON)


class PackedBlock:
    """A block cut in two where attention stands, so that the caller says what is attended to."""

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype) -> None:
        attention, ffn = block.self_attn, block.ffn
        self._heads = (3, attention.n_heads, attention.q_proj.out_features // attention.n_heads)
        self._norm1, self._norm2 = Norm(block.norm1, device), Norm(block.norm2, device)
        self._qkv = Packed(attention.q_proj, attention.k_proj, attention.v_proj, device=device, dtype=dtype)
        self._out = Packed(attention.out_proj, device=device, dtype=dtype)
        self._gate_up = Packed(ffn.w1, ffn.w3, device=device, dtype=dtype)
        self._down = Packed(ffn.w2, device=device, dtype=dtype)

    def project(self, hidden: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """float32 [B, T, d] → turned queries, turned keys, values, each [B, T, heads, head_dim]."""
        qkv = self._qkv(self._norm1(hidden)).view(*hidden.shape[:2], *self._heads)
        turned = rotate(qkv[:, :, :2], turn)
        return turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2]

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The block's input and what attention made of it, [B, T, d] each → its output."""
        hidden = hidden + self._out(mixed)
        gate, up = self._gate_up(self._norm2(hidden)).chunk(2, dim=-1)
        return hidden + self._down(functional.silu(gate) * up)


class Stack:
    """Blocks of one width; they share their rotary frequencies."""

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
        sources = [block for block in blocks if isinstance(block, Block)]
        self.blocks = [PackedBlock(block, device, dtype) for block in sources]
        self._frequencies = sources[0].self_attn.rotary.inv_freq.float().to(device)

    def turns(self, positions: Tensor) -> Turn:
        """Rotary turns of positions int64 [B, T], computed in float32."""
        angles = positions[:, :, None, None, None] * self._frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


class PagedCache:
    """Keys and values of `num_layers` layers of one width, [layers, 2, pages, PAGE_SIZE, width].

    `num_read` is how many pages one `read` may ask for: they are gathered into memory that is taken once.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_read: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._store = _zeros((num_layers, 2, num_pages, PAGE_SIZE, width), device, dtype)
        self._gathered = _zeros((2, num_read, PAGE_SIZE, width), device, dtype)

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put N keys and values, [..., heads, head_dim] each, at places int64 [N]: page · PAGE_SIZE + slot."""
        for store, rows in zip(self._store[layer], (keys, values), strict=True):
            flat = store.flatten(0, 1)
            flat.index_copy_(0, places, rows.reshape(-1, flat.shape[-1]))

    def read(self, layer: int, tables: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values of pages int64 [B, P], [B, P · PAGE_SIZE, heads, head_dim] each; good until the next."""
        for store, gathered in zip(self._store[layer], self._gathered, strict=True):
            torch.index_select(store, 0, tables.flatten(), out=gathered[: tables.numel()])
        head_dim = self._store.shape[-1] // num_heads
        keys, values = self._gathered[:, : tables.numel()].view(2, len(tables), -1, num_heads, head_dim)
        return keys, values

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page of all layers."""
        self._store[:, :, target] = self._store[:, :, source]


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, not whatever memory held: attention weighs unused positions with 0, and 0 · NaN is NaN.

    On a CPU they come from numpy, whose zeros take up memory only where they are used.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, f"i{dtype.itemsize}")).view(dtype)
    return torch.zeros(shape, device=device, dtype=dtype)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn [B, T, …, heads, head_dim]; first and second half of a head make pairs."""
    cosines, sines = turn
    first, second = x.float().chunk(2, dim=-1)
    return (x * cosines + torch.cat((-second, first), -1) * sines).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """[B, T, heads, head_dim] over [B, L, heads, head_dim] → [B, T, heads · head_dim].

    `mask` [B or 1, 1, T or 1, L] is bool (True: seen) or float and added to the scores; `causal` is for T = L.
    """
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
    )
    return mixed.transpose(1, 2).flatten(2)
