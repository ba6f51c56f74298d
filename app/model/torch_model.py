"""The model for inference in torch: folded tables, packed blocks, a paged cache, and the step that draws a token.

Knows tensors on one device; not rows, requests, or how a step is launched. Every embedding goes through the
projection that follows it once at the start, so that a token becomes one row of a table.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from app.model.config import CROSS_HEADS, NUM_STAMP_FIELDS, STAMP_TABLES
from app.model.modules import require_inference
from app.model.torch_blocks import Norm, Packed, PagedCache, Stack, attend
from app.model.torch_sampling import draw_rows, filter_rows
from app.model.transformer import Kronos
from app.pages import PAGE_SIZE

STEP_INTEGERS = 2 + NUM_STAMP_FIELDS + 2
"""Integers of a row before its pages: s1, s2, the stamp's fields, position, top_k."""
STEP_REALS = 4
"""Reals of a row: temperature, top_p, and the uniform numbers that draw s1 and s2."""


class StepInputs(NamedTuple):
    """What a decode step reads of B rows: two tensors, so that two copies bring it to a device."""

    integers: Tensor  # int64 [B, STEP_INTEGERS + P]: as named there, then the pages of the context
    reals: Tensor  # float64 [B, STEP_REALS]

    def cut(self, num_rows: int, num_pages: int) -> StepInputs:
        """The first rows with the first pages of their context."""
        return StepInputs(self.integers[:num_rows, : STEP_INTEGERS + num_pages], self.reals[:num_rows])


class Step(NamedTuple):
    """What a decode step yields for B rows."""

    tokens: Tensor  # int64 [B, 2]
    s1_logits: Tensor  # float32 [B, 2^s1_bits]
    s2_logits: Tensor  # float32 [B, 2^s2_bits]


class TorchModel:
    """A model with its cache of `num_pages` pages, `num_read` of which one step may read; `dtype` stores both.

    Both heads stay float32: logits rounded to bfloat16 tie, and greedy decoding is random where they do.
    """

    def __init__(self, model: Kronos, num_pages: int, num_read: int, device: torch.device, dtype: torch.dtype) -> None:
        require_inference(model)
        width, embedding, cross = model.config.d_model, model.embedding, model.dep_layer.cross_attn
        self._stack = Stack(model.transformer, device, dtype)
        self._cross_layer = len(self._stack.blocks)
        self._cache = PagedCache(self._cross_layer + 1, num_pages, num_read, width, device, dtype)
        half_s1, half_s2 = embedding.fusion_proj.weight.detach().chunk(2, dim=1)
        bias = embedding.fusion_proj.bias.detach()
        self._s1_table = (embedding.emb_s1.weight.detach() * embedding.factor @ half_s1.T + bias).to(device)
        self._s2_table = (embedding.emb_s2.weight.detach() * embedding.factor @ half_s2.T).to(device)
        fields = [model.time_emb.get_submodule(f"{name}_embed") for name, _ in STAMP_TABLES]
        self._time_table = torch.cat([next(field.parameters()).detach() for field in fields]).to(device)
        first_rows = itertools.accumulate((rows for _, rows in STAMP_TABLES[:-1]), initial=0)
        self._time_rows = torch.tensor(list(first_rows), device=device)
        self._norm, self._cross_norm = Norm(model.norm, device), Norm(model.dep_layer.norm, device)
        self._query_table = cross.q_proj(embedding.emb_s1.weight).detach().to(device, dtype)
        self._cross_kv = Packed(cross.k_proj, cross.v_proj, device=device, dtype=dtype)
        self._cross_out = Packed(cross.out_proj, device=device, dtype=dtype)
        self._s1_head, self._s2_head = (
            Packed(head, device=device, dtype=torch.float32) for head in (model.head.proj_s1, model.head.proj_s2)
        )
        self.copy_page = self._cache.copy_page

    def prefill(self, tokens: Tensor, stamps: Tensor, pages: Tensor) -> Tensor:
        """Fill positions 0 … n-1 of `pages` (int64) from int64 [n, 2] and [n, 5]; the context float32 [n, d]."""
        positions = torch.arange(len(tokens), device=tokens.device)
        places = _places(pages[positions // PAGE_SIZE], positions)
        hidden, turn = self._embed(tokens, stamps)[None], self._stack.turns(positions[None])
        for layer, block in enumerate(self._stack.blocks):
            queries, keys, values = block.project(hidden, turn)
            self._cache.write(layer, places, keys, values)
            hidden = block.finish(hidden, attend(queries, keys, values, causal=True))
        return self._remember_context(hidden, places)[0]

    def step(self, inputs: StepInputs) -> Step:
        """Feed every row's token at its position, then draw its next s1, and its s2 given that."""
        row = inputs.integers
        tokens, stamps, tables = row[:, :2], row[:, 2 : 2 + NUM_STAMP_FIELDS], row[:, STEP_INTEGERS:]
        positions, top_k = row[:, STEP_INTEGERS - 2], row[:, STEP_INTEGERS - 1]
        temperature, top_p = inputs.reals[:, :2].float().unbind(-1)
        places = _places(tables.gather(1, positions[:, None] // PAGE_SIZE)[:, 0], positions)
        mask = self._mask(positions, tables.shape[1] * PAGE_SIZE)

        hidden, turn = self._embed(tokens, stamps)[:, None], self._stack.turns(positions[:, None])
        for layer, block in enumerate(self._stack.blocks):
            queries, keys, values = block.project(hidden, turn)
            self._cache.write(layer, places, keys, values)
            past = self._cache.read(layer, tables, queries.shape[2])
            hidden = block.finish(hidden, attend(queries, *past, mask))
        context = self._remember_context(hidden, places)
        s1_logits = self._s1_head(context[:, 0])
        s1 = draw_rows(filter_rows(s1_logits, temperature, top_k, top_p), inputs.reals[:, 2])

        query = self._query_table[s1].view(len(s1), 1, CROSS_HEADS, -1)  # neither it nor the keys are turned
        mixed = attend(query, *self._cache.read(self._cross_layer, tables, CROSS_HEADS), mask)
        s2_logits = self._s2_head(self._cross_norm(context + self._cross_out(mixed))[:, 0])
        s2 = draw_rows(filter_rows(s2_logits, temperature, top_k, top_p), inputs.reals[:, 3])
        return Step(torch.stack((s1, s2), -1), s1_logits, s2_logits)

    def _embed(self, tokens: Tensor, stamps: Tensor) -> Tensor:
        times = self._time_table[stamps + self._time_rows].sum(-2)
        return self._s1_table[tokens[..., 0]] + self._s2_table[tokens[..., 1]] + times

    def _remember_context(self, hidden: Tensor, places: Tensor) -> Tensor:
        """The last block's output → the context, whose keys and values for the cross attention are kept."""
        context = self._norm(hidden)
        keys, values = self._cross_kv(context).chunk(2, dim=-1)
        self._cache.write(self._cross_layer, places, keys, values)
        return context

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Added to scores: 0 up to each row's position, -inf beyond; [B, 1, 1, length] in the storage type."""
        beyond = torch.arange(length, device=positions.device) > positions[:, None]
        mask = torch.zeros_like(beyond, dtype=self._query_table.dtype).masked_fill(beyond, -torch.inf)
        return mask[:, None, None]


def _places(pages: Tensor, positions: Tensor) -> Tensor:
    return pages * PAGE_SIZE + positions % PAGE_SIZE
