"""What the kernel's tests share: its builds, small random models and requests, generation with every logit kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

from app.model.config import ModelConfig, Size, TokenizerConfig
from app.model.native import build
from app.model.native.runner import NativeRunner
from app.model.weights import Checkpoint
from app.pages import pages_for
from app.work import Float32, Forecast, Int16, Int32, Row, Sampling

STAMP_BOUNDS = ((0, 60), (0, 24), (0, 7), (1, 32), (1, 13))
GREEDY = Sampling(temperature=1.0, top_k=1, top_p=1.0)

LOCAL_ISAS = [isa for isa, needed in build.ISAS.items() if needed <= build.processor_flags()]
every_isa = pytest.mark.parametrize(
    "isa",
    [pytest.param(i, marks=pytest.mark.skipif(i not in LOCAL_ISAS, reason="not this processor's")) for i in build.ISAS],
)


class Watched(NativeRunner):
    """Keeps the logits of its last step and the tokens of the last series it detokenised."""

    def __init__(self, checkpoint: Checkpoint, *, num_slots: int, dtype: str) -> None:
        super().__init__(checkpoint, num_slots=num_slots, dtype=dtype)
        self._sizes = 2**checkpoint.model_config.s1_bits, 2**checkpoint.model_config.s2_bits
        self.s1_logits = self.s2_logits = np.empty((0, 0), np.float32)
        self.generated = np.empty((0, 0, 2), np.int32)

    def decode(self, rows: Sequence[Row], positions: Sequence[int], logits: Float32 | None = None) -> None:
        made = np.empty(len(rows) * sum(self._sizes), np.float32)
        super().decode(rows, positions, made)
        s1, s2 = np.split(made, [len(rows) * self._sizes[0]])
        self.s1_logits, self.s2_logits = s1.reshape(len(rows), -1), s2.reshape(len(rows), -1)

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        self.generated = generated
        return super().detokenise(history, generated)


def build_watched(checkpoint: Checkpoint, *, isa: str = LOCAL_ISAS[0], num_slots: int = 4, dtype: str = "float32") -> Watched:
    """A runner on the build for an instruction set, the best of this processor unless told."""
    with mock.patch.object(build, "load", functools.partial(build.load, isa)):
        return Watched(checkpoint, num_slots=num_slots, dtype=dtype)


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    """Small models of every shape the kernel takes, with a context that requests of up to 120 candles pass."""
    width = draw(st.sampled_from((16, 32, 48, 80, 96, 160)))
    tokenizer_width = draw(st.sampled_from((16, 32, 48, 112)))
    return make_size(
        width=width, heads=draw(heads_of(width)), layers=draw(st.integers(1, 3)), ff=draw(st.integers(7, 150)),
        tokenizer_width=tokenizer_width, tokenizer_heads=draw(heads_of(tokenizer_width)),
        encoder=draw(st.integers(1, 2)), decoder=draw(st.integers(1, 2)),
        bits=(draw(st.integers(3, 6)), draw(st.integers(3, 6))), max_context=draw(st.integers(2, 130)),
        learn_te=draw(st.booleans()),
    )  # fmt: skip


def heads_of(width: int) -> st.SearchStrategy[int]:
    """Head counts that leave heads of even width."""
    return st.sampled_from([heads for heads in range(1, 9) if width % (2 * heads) == 0])


def make_size(
    *, width: int = 32, heads: int = 2, layers: int = 2, ff: int = 64, tokenizer_width: int = 32, tokenizer_heads: int = 2,
    encoder: int = 1, decoder: int = 1, bits: tuple[int, int] = (4, 4), max_context: int = 64, learn_te: bool = True,
) -> Size:  # fmt: skip
    """`encoder` and `decoder` count the blocks that are built: one fewer than a configuration declares."""
    dropouts = dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p"), 0.1)
    model = ModelConfig(
        s1_bits=bits[0], s2_bits=bits[1], n_layers=layers, d_model=width, n_heads=heads, ff_dim=ff,
        token_dropout_p=0.1, learn_te=learn_te, **dropouts,
    )  # fmt: skip
    tokenizer = TokenizerConfig(
        d_in=6, d_model=tokenizer_width, n_heads=tokenizer_heads, ff_dim=ff, n_enc_layers=encoder + 1,
        n_dec_layers=decoder + 1, s1_bits=bits[0], s2_bits=bits[1], beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05,
        group_size=1, **dropouts,
    )  # fmt: skip
    return Size(model, tokenizer, max_context)


def random_stamps(rng: np.random.Generator, count: int) -> Int16:
    return np.stack([rng.integers(low, high, count) for low, high in STAMP_BOUNDS], 1).astype(np.int16)


def random_forecast(
    rng: np.random.Generator, lookback: int, horizon: int, how: Sampling = GREEDY, sample_count: int = 1, seed: int = 0
) -> Forecast:
    history = rng.standard_normal((lookback, 6)).clip(-5, 5).astype(np.float32)
    stamps = random_stamps(rng, lookback + horizon)
    return Forecast(history, stamps[:lookback], stamps[lookback:], how.temperature, how.top_k, how.top_p, sample_count, seed)


@dataclass(frozen=True)
class Generated:
    """What a runner makes of a forecast, as `tests.oracle.Generation` has it."""

    history_tokens: Int32  # [L, 2]
    tokens: Int32  # [k, H, 2]
    s1_logits: Float32  # [k, H, V1]
    s2_logits: Float32  # [k, H, V2]
    paths: Float32  # [k, H, 6]


def generate(runner: Watched, work: Forecast, rng: np.random.Generator) -> Generated:
    """All paths of a forecast in one batch, on pages in no order; steps past the context roll."""
    rows, history = open_rows(runner, work, rng)
    horizon = len(work.future_stamps)
    logits: list[tuple[Float32, Float32]] = []
    for position in range(rows[0].first, rows[0].first + horizon):
        if position < runner.max_context:
            runner.decode(rows, [position] * len(rows))
            logits.append((runner.s1_logits, runner.s2_logits))
            continue
        rolled = []
        for row in rows:
            runner.roll(row, position)
            rolled.append((runner.s1_logits, runner.s2_logits))
        logits.append((np.concatenate([s1 for s1, _ in rolled]), np.concatenate([s2 for _, s2 in rolled])))
    tokens = np.stack([row.tokens[-horizon:] for row in rows])
    paths = runner.detokenise(history, tokens)
    return Generated(history, tokens, np.stack([s1 for s1, _ in logits], 1), np.stack([s2 for _, s2 in logits], 1), paths)


def open_rows(runner: Watched, work: Forecast, rng: np.random.Generator) -> tuple[list[Row], Int32]:
    """Rows whose history but for its last token stands in the cache: prefilled once, copied for each path."""
    history = runner.encode(work.history)
    window = min(len(history), runner.max_context)
    per_path = pages_for(min(window + len(work.future_stamps), runner.max_context))
    pages = rng.permutation(runner.num_pages)[: work.sample_count * per_path].astype(np.int32)
    tables = pages.reshape(work.sample_count, per_path)
    stamps = np.concatenate((work.history_stamps[len(history) - window :], work.future_stamps))
    tokens = np.concatenate((history[len(history) - window :], np.zeros((len(work.future_stamps), 2), np.int32)))
    runner.prefill(tokens[: window - 1], stamps[: window - 1], tables[0].tolist())
    for table in tables[1:]:
        for page in range(pages_for(window - 1)):
            runner.copy_page(int(tables[0, page]), int(table[page]))
    sampling = Sampling(work.temperature, work.top_k, work.top_p)
    draws = [runner.draws(work.seed, path, len(work.future_stamps)) for path in range(work.sample_count)]
    rows = [Row(tokens.copy(), stamps, draws[path], table, window - 1, sampling) for path, table in enumerate(tables)]
    return rows, history


def last_logits(runner: Watched, tokens: Int32, stamps: Int16, prefilled: int, pages: Int32) -> Float32:
    """Logits, s1 then s2, after the last of the given tokens: the first `prefilled` at once, the others one by one."""
    room = np.zeros((1, 2), np.int32)
    row = Row(np.concatenate((tokens, room)), stamps, np.zeros((len(tokens), 2)), pages, 0, GREEDY)
    runner.prefill(tokens[:prefilled], stamps[:prefilled], pages.tolist())
    for position in range(prefilled, len(tokens)):
        runner.decode([row], [position])
        row.tokens[: len(tokens)] = tokens
    return np.concatenate((runner.s1_logits[0], runner.s2_logits[0]))
