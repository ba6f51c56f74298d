"""The C++ kernel's structures as Python sees them: packing of weights, allocation of caches, typed calls.

Mirrors the structures of kernel.cpp; knows nothing of checkpoints. Everything a structure points to is kept
alive by the Python object that made it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.model.layers import Block
from app.model.native import build
from app.pages import PAGE_SIZE

LANES = 16
PANEL = 64


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `number`."""
    return -(-number // step) * step


class CLinear(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("k", c_int32), ("n", c_int32))


class CBlock(Structure):
    _fields_ = (
        ("norm1", c_void_p), ("norm2", c_void_p),
        ("qkv", CLinear), ("out", CLinear), ("gate", CLinear), ("up", CLinear), ("down", CLinear),
        ("keys", c_void_p), ("values", c_void_p),
    )  # fmt: skip


class CStack(Structure):
    _fields_ = (
        ("d", c_int32), ("ff", c_int32), ("heads", c_int32), ("num_blocks", c_int32),
        ("cosines", c_void_p), ("sines", c_void_p), ("blocks", POINTER(CBlock)),
    )  # fmt: skip


class CSegment(Structure):
    _fields_ = (("pages", c_void_p), ("start", c_int32), ("count", c_int32))


class CModel(Structure):
    _fields_ = (
        ("stack", CStack),
        ("cross_heads", c_int32), ("s1_size", c_int32), ("s2_size", c_int32), ("unused", c_int32),
        ("s1_table", c_void_p), ("s2_table", c_void_p), ("time_table", c_void_p * 5),
        ("norm", c_void_p), ("query_table", c_void_p),
        ("cross_kv", CLinear), ("cross_out", CLinear), ("cross_norm", c_void_p),
        ("s1_head", CLinear), ("s2_head", CLinear),
        ("cross_keys", c_void_p), ("cross_values", c_void_p),
    )  # fmt: skip


class CPathRow(Structure):
    _fields_ = (
        ("tokens", c_void_p), ("stamps", c_void_p), ("draws", c_void_p), ("pages", c_void_p),
        ("first", c_int32), ("top_k", c_int32), ("temperature", c_float), ("top_p", c_float),
    )  # fmt: skip


def address(array: NDArray[Any]) -> int:
    """Where an array's data begin. Raises ValueError if they are not contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("the kernel takes contiguous arrays only")
    return int(array.__array_interface__["data"][0])


def pack_panels(weight: Tensor) -> Tensor:
    """[N, K] → [N / 64][K][64], the order in which a panel of columns is multiplied."""
    n, k = weight.shape
    packed = functional.pad(weight, (0, 0, 0, round_up(n, PANEL) - n))
    return packed.view(-1, PANEL, k).transpose(1, 2).contiguous()


def pack_tiles(weight: Tensor) -> Tensor:
    """[N, K] → [N / 16][K / 32][16][16][2]: AMX's tiles of 16 pairs of k by 16 columns."""
    n, k = weight.shape
    packed = functional.pad(weight, (0, round_up(k, 2 * LANES) - k, 0, round_up(n, PANEL) - n))
    tiles = packed.view(-1, LANES, packed.shape[1] // (2 * LANES), LANES, 2)  # [N/16, column, K/32, pair, 2]
    return tiles.permute(0, 2, 3, 1, 4).contiguous()


class _Arena:
    """Copies of arrays side by side in large blocks, which the system backs with huge pages: a decode step reads
    every weight once, and would miss the address cache at each small page."""

    BLOCK_BYTES = 32 << 20
    ALIGNMENT = 64

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []
        self._used = 0

    def place(self, array: NDArray[Any]) -> int:
        """The address of a copy that lives as long as the arena."""
        if not self._blocks or self._used + array.nbytes > len(self._blocks[-1]) - self.ALIGNMENT:
            self._blocks.append(np.empty(max(self.BLOCK_BYTES, array.nbytes + self.ALIGNMENT), np.uint8))
            self._used = -address(self._blocks[-1]) % self.ALIGNMENT
        start = self._used
        self._blocks[-1][start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._used += round_up(array.nbytes, self.ALIGNMENT)
        return address(self._blocks[-1]) + start


class Kernel:
    """Weights and caches of one storage type, and the calls that use them.

    `half` stores matrices and caches as bfloat16; arithmetic is float32 either way.
    """

    def __init__(self, *, half: bool) -> None:
        self.half = half
        self._library = build.load()
        self._tiles = half and bool(self._library.kronos_packing())
        self._weights = _Arena()
        self._caches: list[NDArray[Any]] = []

    def keep(self, tensor: Tensor | NDArray[Any]) -> int:
        """Hold a float32 copy of a tensor for as long as the kernel lives; its address."""
        return self._weights.place(np.asarray(tensor, np.float32))

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> CLinear:
        """Pack weight [N, K] as the kernel reads it (`pack_panels`, `pack_tiles`), with zeros beyond column N."""
        n, k = weight.shape
        panels = pack_tiles(weight.detach()) if self._tiles else pack_panels(weight.detach())
        packed = self._weights.place(panels.to(torch.bfloat16).view(torch.int16).numpy() if self.half else panels.numpy())
        padded = np.zeros(round_up(n, PANEL), np.float32)
        if bias is not None:
            padded[:n] = bias.detach().numpy()
        return CLinear(packed, self.keep(padded), k, n)

    def module(self, linear: nn.Linear) -> CLinear:
        return self.linear(linear.weight, linear.bias)

    def cache(self, num_pages: int, d: int, heads: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys [pages, heads, head_dim, 32] and values [pages, heads, 32, padded head_dim], not yet touched, so
        that memory is used as pages are."""
        head_dim = d // heads
        kind = np.uint16 if self.half else np.float32
        keys = np.empty((num_pages, heads, head_dim, PAGE_SIZE), kind)
        values = np.empty((num_pages, heads, PAGE_SIZE, round_up(head_dim, LANES)), kind)
        self._caches += [keys, values]
        return keys, values

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library (the interpreter lock is free meanwhile)."""
        self._library[name](*arguments)


class NativeStack:
    """Transformer blocks in the kernel's layout with a cache of `num_pages` pages."""

    def __init__(self, kernel: Kernel, modules: nn.ModuleList, *, num_positions: int, num_pages: int) -> None:
        blocks = [cast(Block, module) for module in modules]
        attention = blocks[0].self_attn
        self.kernel = kernel
        self.d = attention.q_proj.in_features
        self.stride = round_up(self.d, PANEL)
        if self.d % LANES or self.d // attention.n_heads % 2:
            raise build.KernelUnavailable(f"the kernel needs a width divisible by {LANES} and even heads, not {self.d}")
        self.caches = [kernel.cache(num_pages, self.d, attention.n_heads) for _ in blocks]
        self._blocks = (CBlock * len(blocks))(
            *(self._pack(block, *cache) for block, cache in zip(blocks, self.caches, strict=True))
        )
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), attention.rotary.inv_freq)
        self.struct = CStack(
            self.d, blocks[0].ffn.w1.out_features, attention.n_heads, len(blocks),
            kernel.keep(angles.cos()), kernel.keep(angles.sin()), self._blocks,
        )  # fmt: skip

    def forward(self, hidden: NDArray[np.float32], segments: Sequence[CSegment], *, keys_only: bool = False) -> None:
        """Run float32[rows, stride] through all blocks in place; segments say which positions the rows are."""
        array = (CSegment * len(segments))(*segments)
        self.kernel.call(
            "kronos_blocks", ctypes.byref(self.struct), int(self.kernel.half), c_void_p(address(hidden)),
            hidden.shape[1], array, len(segments), int(keys_only),
        )  # fmt: skip

    def copy_page(self, source: int, target: int) -> None:
        for keys, values in self.caches:
            keys[target] = keys[source]
            values[target] = values[source]

    def _pack(self, block: Block, keys: NDArray[Any], values: NDArray[Any]) -> CBlock:
        kernel, attention, ffn = self.kernel, block.self_attn, block.ffn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = kernel.linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        return CBlock(
            kernel.keep(block.norm1.weight.detach()), kernel.keep(block.norm2.weight.detach()),
            qkv, kernel.module(attention.out_proj),
            kernel.linear(ffn.w1.weight), kernel.linear(ffn.w3.weight), kernel.linear(ffn.w2.weight),
            address(keys), address(values),
        )  # fmt: skip
