"""The model: (s1, s2) tokens and time stamps → logits of the next candle's s1, then of its s2 given s1.

Knows whole windows only: no cache, no sampling. Stamps are always minute, hour, weekday (Monday 0), day,
month.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.model.config import CROSS_HEADS, STAMP_TABLES, ModelConfig
from app.model.layers import Attention, Block, RMSNorm, initialise


class _TokenEmbedding(nn.Module):
    """Both tokens' embeddings times √d, side by side, projected to one vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.emb_s1 = nn.Embedding(2**config.s1_bits, config.d_model)
        self.emb_s2 = nn.Embedding(2**config.s2_bits, config.d_model)
        self.fusion_proj = nn.Linear(2 * config.d_model, config.d_model)
        self.factor = math.sqrt(config.d_model)

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        pair = torch.cat((self.emb_s1(s1), self.emb_s2(s2)), dim=-1) * self.factor
        fused: Tensor = self.fusion_proj(pair)
        return fused


class _StoredEmbedding(nn.Module):
    """A table that is loaded, not trained (``learn_te`` false); its tensor is named ``emb.weight``."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width)
        self.emb.weight.requires_grad_(False)

    def forward(self, index: Tensor) -> Tensor:
        row: Tensor = self.emb(index)
        return row


class _TimeEmbedding(nn.Module):
    """Sum of one embedding for each stamp field."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = nn.Embedding if config.learn_te else _StoredEmbedding
        for name, rows in STAMP_TABLES:
            self.add_module(f"{name}_embed", table(rows, config.d_model))

    def forward(self, stamps: Tensor) -> Tensor:
        tables = [self.get_submodule(f"{name}_embed") for name, _ in STAMP_TABLES]
        fields = stamps.long().unbind(-1)
        return torch.stack([table(field) for table, field in zip(tables, fields, strict=True)]).sum(0)


class _DependencyLayer(nn.Module):
    """The context looked at by the chosen s1: cross attention added to the context, normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cross_attn = Attention(
            config.d_model, CROSS_HEADS, config.attn_dropout_p, config.resid_dropout_p
        )
        self.norm = RMSNorm(config.d_model)

    def forward(self, context: Tensor, query: Tensor, *, causal: bool, rotary: bool) -> Tensor:
        """context [B, T, d], query [B, T or 1, d] → [B, T, d]; one query's answer is added everywhere."""
        out: Tensor = self.norm(context + self.cross_attn(query, context, causal=causal, rotary=rotary))
        return out


class _DualHead(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj_s1 = nn.Linear(config.d_model, 2**config.s1_bits)
        self.proj_s2 = nn.Linear(config.d_model, 2**config.s2_bits)


class Kronos(nn.Module):
    """The decoder-only model. Attribute names are the published tensor names.

    ``decode_s1`` and ``decode_s2`` are inference and refuse train mode; ``forward`` and
    ``forward_as_sampled`` are the two ways to train with the true next s1 given.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = _TokenEmbedding(config)
        self.time_emb = _TimeEmbedding(config)
        self.token_dropout = nn.Dropout(config.token_dropout_p)
        self.transformer = nn.ModuleList(
            Block(
                config.d_model,
                config.n_heads,
                config.ff_dim,
                ffn_dropout=config.ffn_dropout_p,
                attn_dropout=config.attn_dropout_p,
                resid_dropout=config.resid_dropout_p,
            )
            for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.d_model)
        self.dep_layer = _DependencyLayer(config)
        self.head = _DualHead(config)
        initialise(self)

    def decode_s1(self, s1: Tensor, s2: Tensor, stamps: Tensor | None) -> tuple[Tensor, Tensor]:
        """int [B, T] tokens and int [B, T, 5] stamps → s1 logits [B, T, 2^s1_bits] and context [B, T, d].

        Raises RuntimeError in train mode.
        """
        self._refuse_train_mode("decode_s1")
        context = self._context(s1, s2, stamps)
        return self.head.proj_s1(context), context

    def decode_s2(self, context: Tensor, s1: Tensor) -> Tensor:
        """context [B, T, d] and the chosen s1, [B, 1] → s2 logits [B, T, 2^s2_bits]; sample from the last.

        With one query nothing is rotated, neither the query nor the keys. With s1 of [B, T], query i stands
        at position i, is rotated, and sees all T positions; nothing is sampled from that form. Raises
        ValueError for any other number of queries and RuntimeError in train mode.
        """
        self._refuse_train_mode("decode_s2")
        if s1.shape[1] not in (1, context.shape[1]):
            raise ValueError(f"decode_s2 takes 1 or {context.shape[1]} queries, got {s1.shape[1]}")
        return self._s2_logits(context, s1, causal=False, rotary=s1.shape[1] > 1)

    def forward(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, s1_next: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing as the published checkpoints were trained: causal, rotated cross attention.

        All [B, T]; ``s1_next[:, t]`` is the true coarse token of candle t+1. Returns logits of s1 and s2 of
        candle t+1, [B, T, vocabulary] each. The s2 logits are NOT those inference samples from: see
        ``forward_as_sampled``.
        """
        context = self._context(s1, s2, stamps)
        return self.head.proj_s1(context), self._s2_logits(context, s1_next, causal=True, rotary=True)

    def forward_as_sampled(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, s1_next: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing with exactly the arithmetic of inference at each position: causal, not rotated.

        Position t's s2 logits equal the last of ``decode_s2(context[:, :t + 1], s1_next[:, t:t + 1])``. A
        checkpoint trained from scratch is trained this way. Shapes as ``forward``; works in both modes.
        """
        context = self._context(s1, s2, stamps)
        return self.head.proj_s1(context), self._s2_logits(context, s1_next, causal=True, rotary=False)

    def _context(self, s1: Tensor, s2: Tensor, stamps: Tensor | None) -> Tensor:
        hidden = self.embedding(s1, s2)
        if stamps is not None:
            hidden = hidden + self.time_emb(stamps)
        hidden = self.token_dropout(hidden)
        for block in self.transformer:
            hidden = block(hidden)
        context: Tensor = self.norm(hidden)
        return context

    def _s2_logits(self, context: Tensor, s1: Tensor, *, causal: bool, rotary: bool) -> Tensor:
        query = self.embedding.emb_s1(s1)  # without the factor √d that the input embedding has
        logits: Tensor = self.head.proj_s2(self.dep_layer(context, query, causal=causal, rotary=rotary))
        return logits

    def _refuse_train_mode(self, name: str) -> None:
        if self.training:
            raise RuntimeError(
                f"Kronos.{name} is inference: call eval() first (train mode drops out at random)"
            )
