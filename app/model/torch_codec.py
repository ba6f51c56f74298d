"""The tokenizer's two halves for inference in torch: candles to tokens, and tokens to candles.

Always float32, whatever the model is stored in: the tokenizer is small, and a history's tokens should not depend on
the storage type. Knows one series at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.model.modules import require_inference
from app.model.tokenizer import Tokenizer, bits_to_index, index_to_bits
from app.model.torch_blocks import Packed, Stack, attend
from app.work import Float32, Int32

PATHS_AT_ONCE = 16
"""Sample paths detokenised in one go; bounds the memory, not the number of paths."""

KeysValues = tuple[Tensor, Tensor]


class CandleCodec:
    """`encode` and `decode` as `app.work.Runner` promises them."""

    def __init__(self, tokenizer: Tokenizer, max_context: int, device: torch.device) -> None:
        require_inference(tokenizer)
        self._max_context, self._s1_bits, self._device = max_context, tokenizer.config.s1_bits, device
        self._encoder = Stack(tokenizer.encoder, device, torch.float32)
        self._decoder = Stack(tokenizer.decoder, device, torch.float32)
        self._embed, self._quantise, self._head = (
            Packed(layer, device=device, dtype=torch.float32)
            for layer in (tokenizer.embed, tokenizer.quant_embed, tokenizer.head)
        )
        self._s1_table, self._s2_table = (table.to(device) for table in _token_tables(tokenizer))

    def encode(self, history: Float32) -> Int32:
        """Normalised candles float32 [L, 6] → tokens int32 [L, 2]. A component of 0 is bit 0."""
        x = torch.tensor(history, dtype=torch.float32, device=self._device)
        hidden, turn = self._embed(x[None]), self._encoder.turns(self._positions(0, len(x)))
        for block in self._encoder.blocks:
            queries, keys, values = block.project(hidden, turn)
            hidden = block.finish(hidden, attend(queries, keys, values, causal=True))
        bits = self._quantise(hidden[0]) > 0
        tokens = bits_to_index(bits[:, : self._s1_bits]), bits_to_index(bits[:, self._s1_bits :])
        made: Int32 = torch.stack(tokens, -1).int().cpu().numpy()
        return made

    def decode(self, history: Int32, generated: Int32) -> Float32:
        """Tokens of the history int32 [n, 2] and of k paths int32 [k, H, 2] → candles float32 [k, H, 6].

        The window is the last `max_context` tokens with positions from 0; the history in it is run once.
        """
        horizon = generated.shape[1]
        num_prefix = min(len(history), self._max_context - horizon)
        past = self._remember(history[len(history) - num_prefix :])
        seen = torch.ones(horizon, num_prefix + horizon, device=self._device, dtype=torch.bool).tril(num_prefix)
        chunks = [
            self._decode_paths(generated[start : start + PATHS_AT_ONCE], past, seen)
            for start in range(0, len(generated), PATHS_AT_ONCE)
        ]
        return np.concatenate(chunks)

    def _remember(self, tokens: Int32) -> list[KeysValues]:
        """Keys and values, [1, n, heads, head_dim] each, of every decoder block for a history int32 [n, 2]."""
        hidden, turn = self._lookup(tokens[None]), self._decoder.turns(self._positions(0, len(tokens)))
        past = []
        for block in self._decoder.blocks:
            queries, keys, values = block.project(hidden, turn)
            past.append((keys, values))
            if block is not self._decoder.blocks[-1]:  # what the last block makes of the history, nobody reads
                hidden = block.finish(hidden, attend(queries, keys, values, causal=True))
        return past

    def _decode_paths(self, generated: Int32, past: list[KeysValues], seen: Tensor) -> Float32:
        num_paths, horizon, _ = generated.shape
        hidden = self._lookup(generated)
        turn = self._decoder.turns(self._positions(seen.shape[1] - horizon, seen.shape[1]))
        for block, before in zip(self._decoder.blocks, past, strict=True):
            queries, *own = block.project(hidden, turn)
            keys, values = (torch.cat((old.expand(num_paths, -1, -1, -1), new), 1) for old, new in zip(before, own, strict=True))
            hidden = block.finish(hidden, attend(queries, keys, values, seen))
        candles: Float32 = self._head(hidden).cpu().numpy()
        return candles

    def _lookup(self, tokens: Int32) -> Tensor:
        s1, s2 = torch.tensor(tokens, dtype=torch.int64, device=self._device).unbind(-1)
        return self._s1_table[s1] + self._s2_table[s2]

    def _positions(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self._device)[None]


def _token_tables(tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """What each s1 and each s2 adds to the decoder's input: their bits through the projection that follows."""
    config = tokenizer.config
    projection = tokenizer.post_quant_embed.weight.detach() * config.num_bits**-0.5
    s1_part, s2_part = projection.split([config.s1_bits, config.s2_bits], dim=1)
    s1_bits = index_to_bits(torch.arange(2**config.s1_bits), config.s1_bits)
    s2_bits = index_to_bits(torch.arange(2**config.s2_bits), config.s2_bits)
    return s1_bits @ s1_part.T + tokenizer.post_quant_embed.bias.detach(), s2_bits @ s2_part.T
