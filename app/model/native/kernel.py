"""The C++ kernel's structures as Python sees them: packing of weights, allocation of caches, typed calls.

Mirrors the structures of kernel.cpp, and knows blocks by their published names. Everything a structure points
to is kept alive by the Python object that made it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.model.native import build
from app.model.weights import Tensors
from app.pages import PAGE_SIZE

Float32 = NDArray[np.float32]

LANES = 16
PANEL = 64
PANELS, TILES, TILES_FORBIDDEN = 0, 1, -1
"""What `kronos_packing` answers; a sandbox may forbid AMX on a processor that has it."""


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


def pack_panels(weight: Float32) -> Float32:
    """[N, K] → [N / 64][K][64], the order in which a panel of columns is multiplied."""
    n, k = weight.shape
    packed = np.pad(weight, ((0, round_up(n, PANEL) - n), (0, 0)))
    return np.ascontiguousarray(packed.reshape(-1, PANEL, k).transpose(0, 2, 1))


def pack_tiles(weight: Float32) -> Float32:
    """[N, K] → [N / 16][K / 32][16][16][2]: AMX's tiles of 16 pairs of k by 16 columns."""
    n, k = weight.shape
    packed = np.pad(weight, ((0, round_up(n, PANEL) - n), (0, round_up(k, 2 * LANES) - k)))
    tiles = packed.reshape(-1, LANES, packed.shape[1] // (2 * LANES), LANES, 2)  # [N/16, column, K/32, pair, 2]
    return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1, 4))


def to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


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
        packing = self._library.kronos_packing() if half else PANELS
        if packing == TILES_FORBIDDEN:
            self._library, packing = build.load("x86-64-v4"), PANELS
        self._tiles = packing == TILES
        self._weights = _Arena()
        self._caches: list[NDArray[Any]] = []

    def keep(self, array: Float32) -> int:
        """Hold a copy of an array for as long as the kernel lives; its address."""
        return self._weights.place(np.asarray(array, np.float32))

    def linear(self, weight: Float32, bias: Float32 | None = None) -> CLinear:
        """Pack weight [N, K] as the kernel reads it (`pack_panels`, `pack_tiles`), with zeros beyond column N."""
        n, k = weight.shape
        packed = pack_tiles(weight) if self._tiles else pack_panels(weight)
        padded = np.zeros(round_up(n, PANEL), np.float32)
        if bias is not None:
            padded[:n] = bias
        return CLinear(self._weights.place(to_bfloat16(packed) if self.half else packed), self.keep(padded), k, n)

    def stored(self, tensors: Tensors, *names: str) -> CLinear:
        """Stored linear layers, several side by side: their outputs follow each other."""
        bias = [tensors[f"{name}.bias"] for name in names if f"{name}.bias" in tensors]
        weight = np.concatenate([tensors[f"{name}.weight"] for name in names])
        return self.linear(weight, np.concatenate(bias) if bias else None)

    def cache(self, num_pages: int, d: int, heads: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys [pages, heads, head_dim, 32] and values [pages, heads, 32, padded head_dim], not yet touched, so
        that memory is used as pages are."""
        head_dim = d // heads
        kind = np.uint16 if self.half else np.float32
        keys = np.empty((num_pages, heads, head_dim, PAGE_SIZE), kind)
        values = np.empty((num_pages, heads, PAGE_SIZE, round_up(head_dim, LANES)), kind)
        self._caches += [keys, values]
        return keys, values

    @property
    def cache_bytes(self) -> int:
        """What all caches take once every page has been used."""
        return sum(store.nbytes for store in self._caches)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library (the interpreter lock is free meanwhile)."""
        self._library[name](*arguments)


class NativeStack:
    """Transformer blocks in the kernel's layout with a cache of `num_pages` pages."""

    def __init__(
        self, kernel: Kernel, tensors: Tensors, prefix: str, *, heads: int, num_positions: int, num_pages: int
    ) -> None:
        """Blocks are `prefix`.0, `prefix`.1 … as far as there are any. Raises KernelUnavailable for a width that
        the kernel does not do."""
        num_blocks = sum(name.startswith(f"{prefix}.") and name.endswith(".norm1.weight") for name in tensors)
        if not num_blocks:
            raise build.KernelUnavailable(f"the kernel needs at least one block of {prefix}")
        ff, self.d = tensors[f"{prefix}.0.ffn.w1.weight"].shape
        if self.d % LANES or self.d // heads % 2:
            raise build.KernelUnavailable(f"the kernel needs a width divisible by {LANES} and even heads, not {self.d}")
        self.kernel = kernel
        self.stride = round_up(self.d, PANEL)
        self.caches = [kernel.cache(num_pages, self.d, heads) for _ in range(num_blocks)]
        self._blocks = (CBlock * num_blocks)(
            *(self._pack(tensors, f"{prefix}.{index}", *cache) for index, cache in enumerate(self.caches))
        )
        frequencies = tensors[f"{prefix}.0.self_attn.rotary.inv_freq"]
        angles = np.outer(np.arange(num_positions, dtype=np.float32), frequencies)
        self.struct = CStack(
            self.d, ff, heads, num_blocks, kernel.keep(np.cos(angles)), kernel.keep(np.sin(angles)), self._blocks
        )

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

    def _pack(self, tensors: Tensors, block: str, keys: NDArray[Any], values: NDArray[Any]) -> CBlock:
        kernel = self.kernel
        attention = f"{block}.self_attn"
        return CBlock(
            kernel.keep(tensors[f"{block}.norm1.weight"]), kernel.keep(tensors[f"{block}.norm2.weight"]),
            kernel.stored(tensors, *(f"{attention}.{part}_proj" for part in "qkv")),
            kernel.stored(tensors, f"{attention}.out_proj"),
            *(kernel.stored(tensors, f"{block}.ffn.{part}") for part in ("w1", "w3", "w2")),
            address(keys), address(values),
        )  # fmt: skip
