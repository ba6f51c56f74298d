"""The least time a forecast can take on one thread: operations and bytes that cannot be avoided, over the ceilings.

Counts the arithmetic of the folded model (no embedding products, nothing for positions nobody reads) and, for
each decode step, the weights once a step and every row's keys and values once. Formulas: a product of [m, k]
and [k, n] is 2 m k n operations; causal attention over n positions of width d is 2 · 2 · d · n² / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.model.config import ModelConfig, TokenizerConfig


@dataclass(frozen=True, slots=True)
class Ceilings:
    flops: float
    """Operations per second."""
    bandwidth: float
    """Bytes read per second at the working set's size."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one forecast: operations outside decode; per decode step of one row: operations and cache bytes; and
    the bytes of weights that a step reads however many rows share it."""

    once_flops: float
    step_flops: float
    step_cache_bytes: float
    step_weight_bytes: float

    def seconds(self, ceilings: Ceilings, horizon: int, rows: int) -> float:
        """Least seconds per forecast with `rows` forecasts decoding together."""
        memory = (self.step_weight_bytes / rows + self.step_cache_bytes) / ceilings.bandwidth
        step = max(self.step_flops / ceilings.flops, memory)
        return self.once_flops / ceilings.flops + horizon * step

    def working_set(self, rows: int) -> float:
        """Bytes that the decode steps of `rows` forecasts read again and again."""
        return self.step_weight_bytes + rows * self.step_cache_bytes


def forecast_cost(model: ModelConfig, tokenizer: TokenizerConfig, lookback: int, horizon: int, item_bytes: int) -> Cost:
    """Cost of one forecast; `item_bytes` is the size of a stored weight or cache value (4 or 2)."""
    encode = (tokenizer.n_enc_layers - 1) * _block_flops(tokenizer, lookback, lookback)
    decode = (tokenizer.n_dec_layers - 2) * _block_flops(tokenizer, lookback + horizon, lookback + horizon)
    decode += 2 * lookback * 2 * tokenizer.d_model**2 + _block_flops(tokenizer, horizon, lookback + horizon)
    cross_kv = 2 * 2 * model.d_model**2
    prefill = model.n_layers * _block_flops(model, lookback, lookback) + lookback * cross_kv
    average = lookback + horizon / 2
    heads = model.d_model * (2**model.s1_bits + 2**model.s2_bits)
    parameters = model.n_layers * _block_parameters(model) + 3 * model.d_model**2 + heads
    attention = 4 * model.d_model * average * (model.n_layers + 1)
    return Cost(
        once_flops=encode + prefill + decode,
        step_flops=2 * parameters + attention,
        step_cache_bytes=(model.n_layers + 1) * 2 * model.d_model * average * item_bytes,
        step_weight_bytes=parameters * item_bytes,
    )


def _block_parameters(config: ModelConfig | TokenizerConfig) -> int:
    return 4 * config.d_model**2 + 3 * config.d_model * config.ff_dim


def _block_flops(config: ModelConfig | TokenizerConfig, rows: int, positions: int) -> float:
    """One block over the last `rows` of `positions` positions."""
    pairs = rows * (2 * positions - rows) / 2
    return 2 * rows * _block_parameters(config) + 4 * config.d_model * pairs
