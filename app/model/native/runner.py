"""The runner on a CPU: a checkpoint folded and packed for the kernel, with its cache.

Knows the way from candles to tokens and back and the model's step; not who asks or in which order. Folded
once at the start: every embedding goes through the projection that follows it, so a token becomes one row of
a table. One thread calls it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from app.model.config import CROSS_HEADS, STAMP_TABLES
from app.model.draws import uniforms
from app.model.native.kernel import PANEL, CModel, CPathRow, CSegment, Kernel, NativeStack, address, round_up
from app.model.weights import Checkpoint, Tensors
from app.pages import PAGE_SIZE, pages_for
from app.scheduler import Scheduler
from app.work import Float32, Float64, Int16, Int32, Row

MAX_HISTORY = 2048
"""Candles that one series may have (settings bound requests by the same number)."""
DETOKENISE_PATHS = 8
"""Sample paths detokenised in one go; bounds the memory, not the number of paths."""


class NativeRunner:
    """See `app.work.Runner` for the promises of each method."""

    device = "cpu"

    def __init__(self, checkpoint: Checkpoint, *, num_slots: int, dtype: str = "float32") -> None:
        self.num_slots = num_slots
        self.max_context = checkpoint.max_context
        self.kernel = Kernel(half=dtype == "bfloat16")
        tokenizer_kernel = Kernel(half=False)  # tokens are signs of numbers near 0: rounded ones would be other tokens
        self.num_pages = Scheduler.pages_needed(num_slots, self.max_context)
        self._scratch = np.arange(self.num_pages, self.num_pages + pages_for(self.max_context), dtype=np.int32)
        self._candles = _CandleCodec(tokenizer_kernel, checkpoint)
        self._build_model(checkpoint)
        self._rows: WeakKeyDictionary[Row, CPathRow] = WeakKeyDictionary()
        self.cache_bytes = self.kernel.cache_bytes + tokenizer_kernel.cache_bytes

    def encode(self, history: Float32) -> Int32:
        return self._candles.encode(history)

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        return self._candles.decode(history, generated)

    def prefill(self, tokens: Int32, stamps: Int16, pages: Sequence[int]) -> None:
        if len(tokens):
            self._prefill(tokens, stamps, np.asarray(pages, np.int32), None)

    def embed(self, history: Float32, stamps: Int16) -> Float32:
        tokens = self.encode(history)[-self.max_context :]
        context = np.empty((len(tokens), self._stack.d), np.float32)
        self._prefill(tokens, stamps[len(stamps) - len(tokens) :], self._scratch, context)
        vector: Float32 = context.mean(0)
        return vector

    def decode(self, rows: Sequence[Row], positions: Sequence[int], logits: Float32 | None = None) -> None:
        paths = (ctypes.c_void_p * len(rows))(*(ctypes.addressof(self._path_row(row)) for row in rows))
        where = (ctypes.c_int32 * len(rows))(*positions)
        out = None if logits is None else ctypes.c_void_p(address(logits))
        self.kernel.call(
            "kronos_decode", ctypes.byref(self._model), int(self.kernel.half), paths, where, len(rows), out
        )

    def roll(self, row: Row, position: int) -> None:
        start = position - self.max_context + 1
        window = Row(row.tokens[start:], row.stamps[start:], row.draws, self._scratch, row.first - start, row.sampling)
        self.prefill(window.tokens[: self.max_context - 1], window.stamps[: self.max_context - 1], self._scratch.tolist())
        self.decode([window], [self.max_context - 1])

    def copy_page(self, source: int, target: int) -> None:
        self._stack.copy_page(source, target)
        for store in self._cross_cache:
            store[target] = store[source]

    def draws(self, seed: int, path: int, steps: int) -> Float64:
        return uniforms(seed, path, steps)

    def _prefill(self, tokens: Int32, stamps: Int16, pages: Int32, context: Float32 | None) -> None:
        tokens, stamps = np.ascontiguousarray(tokens), np.ascontiguousarray(stamps)
        out = None if context is None else ctypes.c_void_p(address(context))
        self.kernel.call(
            "kronos_prefill", ctypes.byref(self._model), int(self.kernel.half), ctypes.c_void_p(address(tokens)),
            ctypes.c_void_p(address(stamps)), len(tokens), ctypes.c_void_p(address(pages)), out,
        )  # fmt: skip

    def _path_row(self, row: Row) -> CPathRow:
        made = self._rows.get(row)
        if made is None:
            made = self._rows[row] = CPathRow(
                address(row.tokens), address(row.stamps), address(row.draws), address(row.pages),
                row.first, row.sampling.top_k, row.sampling.temperature, row.sampling.top_p,
            )  # fmt: skip
        return made

    def _build_model(self, checkpoint: Checkpoint) -> None:
        kernel, config, tensors = self.kernel, checkpoint.model_config, checkpoint.model_tensors
        pages = self.num_pages + len(self._scratch)
        self._stack = NativeStack(
            kernel, tensors, "transformer", heads=config.n_heads, num_positions=self.max_context, num_pages=pages
        )
        self._cross_cache = kernel.cache(pages, config.d_model, CROSS_HEADS)
        s1_embedding, s2_embedding = tensors["embedding.emb_s1.weight"], tensors["embedding.emb_s2.weight"]
        s1_part, s2_part = np.split(tensors["embedding.fusion_proj.weight"] * np.float32(math.sqrt(config.d_model)), 2, axis=1)
        s1_table = s1_embedding @ s1_part.T + tensors["embedding.fusion_proj.bias"]
        cross = "dep_layer.cross_attn"
        query = s1_embedding @ tensors[f"{cross}.q_proj.weight"].T + tensors[f"{cross}.q_proj.bias"]
        times = [_time_table(tensors, name) for name, _ in STAMP_TABLES]
        self._model = CModel(
            self._stack.struct, CROSS_HEADS, len(s1_embedding), len(s2_embedding), 0,
            kernel.keep(s1_table), kernel.keep(s2_embedding @ s2_part.T),
            (ctypes.c_void_p * len(times))(*map(kernel.keep, times)),
            kernel.keep(tensors["norm.weight"]),
            kernel.keep(query * np.float32((config.d_model // CROSS_HEADS) ** -0.5)),  # with the scale of attention
            kernel.stored(tensors, f"{cross}.k_proj", f"{cross}.v_proj"), kernel.stored(tensors, f"{cross}.out_proj"),
            kernel.keep(tensors["dep_layer.norm.weight"]),
            kernel.stored(tensors, "head.proj_s1"), kernel.stored(tensors, "head.proj_s2"),
            *map(address, self._cross_cache),
        )  # fmt: skip


class _CandleCodec:
    """The tokenizer's two halves: candles to tokens, and tokens to candles."""

    def __init__(self, kernel: Kernel, checkpoint: Checkpoint) -> None:
        config, tensors, context = checkpoint.tokenizer_config, checkpoint.tokenizer_tensors, checkpoint.max_context
        self._kernel, self._max_context, self._s1_bits = kernel, context, config.s1_bits
        self._history_pages = np.arange(pages_for(MAX_HISTORY), dtype=np.int32)
        self._encoder = NativeStack(
            kernel, tensors, "encoder", heads=config.n_heads, num_positions=MAX_HISTORY, num_pages=len(self._history_pages)
        )
        decoder_pages = (1 + DETOKENISE_PATHS) * (pages_for(context) + 1)
        self._decoder = NativeStack(
            kernel, tensors, "decoder", heads=config.n_heads, num_positions=context, num_pages=decoder_pages
        )
        self._embed, self._quantise, self._head = (
            kernel.stored(tensors, name) for name in ("embed", "quant_embed", "head")
        )
        projection = tensors["post_quant_embed.weight"] * config.num_bits**-0.5
        s1_part, s2_part = np.split(projection, [config.s1_bits], axis=1)
        self._s1_table = _signs(config.s1_bits) @ s1_part.T + tensors["post_quant_embed.bias"]
        self._s2_table = _signs(config.s2_bits) @ s2_part.T
        self._powers = 2 ** np.arange(max(config.s1_bits, config.s2_bits))

    def encode(self, history: Float32) -> Int32:
        count = len(history)
        if count > MAX_HISTORY:
            raise ValueError(f"a history of {count} candles is longer than {MAX_HISTORY}")
        hidden = self._multiply(self._embed, np.ascontiguousarray(history, np.float32))
        self._encoder.forward(hidden, [CSegment(address(self._history_pages), 0, count)])
        bits = self._multiply(self._quantise, hidden) > 0
        s1 = bits[:, : self._s1_bits] @ self._powers[: self._s1_bits]
        fine = bits[:, self._s1_bits : self._quantise.n]
        return np.stack((s1, fine @ self._powers[: fine.shape[1]]), 1).astype(np.int32)

    def decode(self, history: Int32, generated: Int32) -> Float32:
        horizon = generated.shape[1]
        if horizon > self._max_context:
            raise ValueError(f"{horizon} candles do not fit in a context of {self._max_context}")
        num_prefix = min(len(history), self._max_context - horizon)
        prefix_pages = np.arange(pages_for(num_prefix), dtype=np.int32)
        if num_prefix:
            hidden = self._lookup(history[len(history) - num_prefix :])
            self._decoder.forward(hidden, [CSegment(address(prefix_pages), 0, num_prefix)], keys_only=True)
        chunks = [
            self._decode_paths(generated[start : start + DETOKENISE_PATHS], num_prefix)
            for start in range(0, len(generated), DETOKENISE_PATHS)
        ]
        return np.concatenate(chunks)

    def _decode_paths(self, generated: Int32, num_prefix: int) -> Float32:
        """int32[k, H, 2] after a prefix that stands in the first pages → float32[k, H, 6]."""
        num_paths, horizon, _ = generated.shape
        num_shared = num_prefix // PAGE_SIZE
        num_own = pages_for(num_prefix + horizon) - num_shared
        tables = np.empty((num_paths, num_shared + num_own), np.int32)
        tables[:, :num_shared] = np.arange(num_shared)
        tables[:, num_shared:] = pages_for(num_prefix) + np.arange(num_paths * num_own).reshape(num_paths, num_own)
        if num_prefix % PAGE_SIZE:
            for table in tables:
                self._decoder.copy_page(num_shared, int(table[num_shared]))
        hidden = self._lookup(generated.reshape(-1, 2))
        self._decoder.forward(hidden, [CSegment(address(table), num_prefix, horizon) for table in tables])
        candles = self._multiply(self._head, hidden)[:, : self._head.n]
        return candles.reshape(num_paths, horizon, -1).copy()

    def _lookup(self, tokens: Int32) -> Float32:
        hidden = np.zeros((len(tokens), self._decoder.stride), np.float32)
        hidden[:, : self._decoder.d] = self._s1_table[tokens[:, 0]] + self._s2_table[tokens[:, 1]]
        return hidden

    def _multiply(self, linear: ctypes.Structure, x: Float32) -> Float32:
        y = np.empty((len(x), round_up(linear.n, PANEL)), np.float32)
        self._kernel.call(
            "kronos_multiply", ctypes.byref(linear), int(self._kernel.half), ctypes.c_void_p(address(x)), x.shape[1],
            len(x), ctypes.c_void_p(address(y)), y.shape[1],
        )  # fmt: skip
        return y


def _signs(num_bits: int) -> Float32:
    """The bits of every token as ±1, least significant first: float32[2^bits, bits]."""
    bits = np.arange(2**num_bits)[:, None] >> np.arange(num_bits) & 1
    return (2 * bits - 1).astype(np.float32)


def _time_table(tensors: Tensors, name: str) -> Float32:
    stored = f"time_emb.{name}_embed"
    table: Float32 = tensors[f"{stored}.weight"] if f"{stored}.weight" in tensors else tensors[f"{stored}.emb.weight"]
    return table
