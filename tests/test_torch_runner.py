"""The torch runner against the goldens, the oracle and the CPU kernel: eager, with fixed shapes, and on CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from app.engine import Engine
from app.model import frames, sampling
from app.model.config import ModelConfig, Size, TokenizerConfig
from app.model.modules import random_checkpoint
from app.model.native.runner import NativeRunner
from app.model.torch_runner import TorchRunner, context_buckets
from app.model.torch_sampling import draw_rows, filter_rows
from app.model.weights import Checkpoint, CheckpointError
from app.pages import pages_for
from app.work import Embed, Float32, Forecast, Int16, Int32, Outcome, Row, Runner, Sampling
from tests import golden_cases, oracle
from tests.golden_cases import Array, Case

NUM_SLOTS = 4
GREEDY = Sampling(temperature=1.0, top_k=1, top_p=1.0)
FEW: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
}


@dataclass(frozen=True)
class Mode:
    """A way to run: where, and whether a step has the shapes that a CUDA graph needs."""

    device: str
    fixed_shapes: bool

    def build(self, checkpoint: Checkpoint, kind: type[TorchRunner] = TorchRunner, dtype: str = "float32") -> TorchRunner:
        device = torch.device(self.device)
        return kind(checkpoint, num_slots=NUM_SLOTS, device=device, dtype=dtype, fixed_shapes=self.fixed_shapes)


EAGER = Mode("cpu", fixed_shapes=False)
MODES = [
    pytest.param(EAGER, id="eager"),
    pytest.param(Mode("cpu", fixed_shapes=True), id="fixed"),
]
if torch.cuda.is_available():
    MODES.append(pytest.param(Mode("cuda", fixed_shapes=True), id="cuda"))
every_mode = pytest.mark.parametrize("mode", MODES)


class Watched(TorchRunner):
    """Keeps every step's logits, and the tokens of every series that was generated."""

    def decode(self, rows: Sequence[Row], positions: Sequence[int], logits: Float32 | None = None) -> None:
        sizes = [self.num_logits[0] * len(rows), self.num_logits[1] * len(rows)]
        made = np.empty(sum(sizes), np.float32)
        super().decode(rows, positions, made)
        self.logits.append((made[: sizes[0]].reshape(len(rows), -1), made[sizes[0] :].reshape(len(rows), -1)))

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        self.generated.append(generated)
        return super().detokenise(history, generated)

    def watch(self, checkpoint: Checkpoint) -> Watched:
        config = checkpoint.model.config
        self.num_logits = (2**config.s1_bits, 2**config.s2_bits)
        self.logits: list[tuple[Float32, Float32]] = []
        self.generated: list[Int32] = []
        return self


def answer(runner: Runner, *works: Forecast | Embed) -> list[Outcome]:
    """Everything submitted at once to an engine of its own."""
    engine = Engine(runner)
    engine.start()
    try:
        engine.prewarm()
        if isinstance(runner, Watched):
            runner.logits.clear()
            runner.generated.clear()
        with engine.reserve() as permit:
            tickets = [permit.submit(work, time.monotonic() + 60) for work in works]
            return [ticket.future.result(60) for ticket in tickets]
    finally:
        engine.stop()


def paths_of(outcome: Outcome) -> Float32:
    assert outcome.paths is not None
    return outcome.paths


def stamps(count: int) -> Int16:
    return frames.stamp_features(np.datetime64("2024-01-31T09:00") + 5 * np.arange(count).astype("timedelta64[m]"))


def make_work(lookback: int, horizon: int, how: Sampling = GREEDY, paths: int = 1, seed: int = 3) -> Forecast:
    history = np.random.default_rng(seed).standard_normal((lookback, 6)).astype(np.float32).cumsum(0)
    times = stamps(lookback + horizon)
    return Forecast(
        frames.normalise(history).x,
        times[:lookback],
        times[lookback:],
        how.temperature,
        how.top_k,
        how.top_p,
        paths,
        seed,
    )


def by_oracle(checkpoint: Checkpoint, work: Forecast) -> oracle.Generation:
    return oracle.generate(
        checkpoint, work.history, work.history_stamps, work.future_stamps, temperature=work.temperature,
        top_k=work.top_k, top_p=work.top_p, sample_count=work.sample_count, seed=work.seed,
    )  # fmt: skip


# --- goldens ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_engine() -> Iterator[Callable[[Mode, int], Engine]]:
    """Engines over the golden checkpoint by mode and context, each made once."""
    made: dict[tuple[Mode, int], Engine] = {}

    def engine(mode: Mode, max_context: int) -> Engine:
        if (mode, max_context) not in made:
            fresh = made[mode, max_context] = Engine(mode.build(golden_cases.checkpoint(max_context)))
            fresh.start()
            fresh.prewarm()
        return made[mode, max_context]

    yield engine
    for each in made.values():
        each.stop()


@every_mode
@pytest.mark.parametrize("case", golden_cases.params("predict", "predict_batch"))
def test_greedy_goldens(golden_engine: Callable[[Mode, int], Engine], mode: Mode, case: Case) -> None:
    """Every recorded greedy forecast, series together as recorded, comes out of the engine."""
    given, options = golden_cases.inputs(case), case["kwargs"]
    batch = [(frame, given[f"values{i}"]) for i, frame in enumerate(case.get("batch", []))] or [(case, given["values"])]
    scaled, tickets = [], []
    with golden_engine(mode, case["max_context"]).reserve() as permit:
        for frame, values in batch:
            filled = frames.fill_missing(golden_cases.columns(frame["columns"], values))
            scaled.append(frames.normalise(filled, case.get("clip", frames.CLIP)))
            past, future = (frames.stamp_features(golden_cases.stamps(frame[name])) for name in ("x_timestamps", "y_timestamps"))
            work = Forecast(
                scaled[-1].x,
                past,
                future,
                options["T"],
                options["top_k"],
                options["top_p"],
                options["sample_count"],
            )
            tickets.append(permit.submit(work, time.monotonic() + 60))
        made = [paths_of(ticket.future.result(60)) for ticket in tickets]
    pred = [frames.restore(paths.mean(0), x.mean, x.std) for paths, x in zip(made, scaled, strict=True)]
    answers: dict[str, Array] = {"pred": np.stack(pred), "pred_norm": np.concatenate(made)}
    shapes = {name: case["outputs"][name]["shape"] for name in answers}
    wanted = {**case, "outputs": {name: case["outputs"][name] for name in answers}}
    golden_cases.fraction_of_tolerance(wanted, **{name: a.reshape(shapes[name]) for name, a in answers.items()})


# --- the oracle and the kernel ------------------------------------------------------------------------------


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """Small random checkpoints of every shape that the kernel takes too."""
    s1_bits, s2_bits = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    width, tokenizer_width = draw(st.sampled_from((16, 32, 48))), draw(st.sampled_from((16, 32)))
    dropouts = dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p"), 0.1)
    model = ModelConfig(
        s1_bits=s1_bits, s2_bits=s2_bits, n_layers=draw(st.integers(1, 3)), d_model=width,
        n_heads=draw(st.sampled_from((1, 2, 4))), ff_dim=draw(st.integers(20, 70)), token_dropout_p=0.1,
        learn_te=draw(st.booleans()), **dropouts,
    )  # fmt: skip
    tokenizer = TokenizerConfig(
        d_in=6, d_model=tokenizer_width, n_heads=draw(st.sampled_from((1, 2))), ff_dim=40,
        n_enc_layers=draw(st.integers(2, 3)), n_dec_layers=draw(st.integers(2, 3)), s1_bits=s1_bits, s2_bits=s2_bits,
        beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05, group_size=1, **dropouts,
    )  # fmt: skip
    return random_checkpoint(Size(model, tokenizer, draw(st.integers(2, 70))), draw(st.integers(0, 1000)))


@pytest.mark.parametrize("mode", MODES)
@settings(**FEW, max_examples=12)
@given(
    checkpoint=checkpoints(), lookback=st.integers(1, 90), horizon=st.integers(1, 9), paths=st.integers(1, 6),
    how=st.sampled_from((GREEDY, Sampling(0.8, 0, 0.9), Sampling(1.3, 3, 0.5), Sampling(1.0, 0, 1.0))),
)  # fmt: skip
def test_three_ways_agree(mode: Mode, checkpoint: Checkpoint, lookback: int, horizon: int, paths: int, how: Sampling) -> None:
    """Oracle, kernel and torch draw the same tokens and make the same candles of them, windows rolled or not,
    more paths than slots or fewer."""
    work = make_work(lookback, min(horizon, checkpoint.max_context), how, paths, seed=lookback)
    truth = by_oracle(checkpoint, work)
    runner = mode.build(checkpoint, Watched)
    assert isinstance(runner, Watched)
    made = paths_of(answer(runner.watch(checkpoint), work)[0])
    np.testing.assert_array_equal(runner.encode(work.history), truth.history_tokens)
    np.testing.assert_array_equal(runner.generated[0], truth.tokens)
    np.testing.assert_allclose(made, truth.paths, atol=2e-5, rtol=1e-5)
    native = paths_of(answer(NativeRunner(checkpoint, num_slots=NUM_SLOTS), work)[0])
    np.testing.assert_allclose(made, native, atol=2e-5, rtol=1e-5)


@every_mode
@pytest.mark.parametrize("lookback", [pytest.param(20, id="fits"), pytest.param(60, id="rolls")])
def test_logits_are_the_oracles(mode: Mode, lookback: int) -> None:
    """Every step draws from the oracle's logits, before the window rolls and after."""
    checkpoint = golden_cases.checkpoint()
    work = make_work(lookback, 12)
    truth = by_oracle(checkpoint, work)
    runner = mode.build(checkpoint, Watched)
    assert isinstance(runner, Watched)
    answer(runner.watch(checkpoint), work)
    for made, wanted in zip(zip(*runner.logits, strict=True), (truth.s1_logits, truth.s2_logits), strict=True):
        np.testing.assert_allclose(np.concatenate(made), wanted[0], atol=1e-4)


@every_mode
def test_neighbours_change_nothing(mode: Mode) -> None:
    """A forecast among others of other lengths and settings, more than fit at once, is what it is alone."""
    runner = mode.build(golden_cases.checkpoint())
    settings_ = (GREEDY, Sampling(0.8, 0, 0.9), Sampling(1.2, 5, 1.0), Sampling(1.0, 0, 1.0))
    works = [
        make_work(lookback, horizon, settings_[i % 4], 1 + i % 3, seed=i)
        for i, (lookback, horizon) in enumerate(((5, 20), (40, 12), (62, 9), (33, 3), (90, 4), (1, 7)))
    ]
    together = answer(runner, *works)
    for work, outcome in zip(works, together, strict=True):
        np.testing.assert_allclose(paths_of(outcome), paths_of(answer(runner, work)[0]), atol=2e-5)


@every_mode
def test_a_row_that_left_writes_nowhere(mode: Mode) -> None:
    """The pages of a row that takes no more part may be another's: a step of its neighbour leaves them alone."""
    checkpoint = golden_cases.checkpoint()
    runner, fresh = mode.build(checkpoint), mode.build(checkpoint)
    first, second = np.split(np.arange(2 * pages_for(checkpoint.max_context), dtype=np.int32), 2)
    stays, left = begin(runner, 9, first), begin(runner, 5, second)
    runner.decode([stays, left], [9, 5])
    newcomer = begin(runner, 12, second)
    runner.decode([stays], [10])
    among_others, alone = np.empty((2, 2**checkpoint.model.config.s1_bits * 2), np.float32)
    runner.decode([newcomer], [12], among_others)
    fresh.decode([begin(fresh, 12, second)], [12], alone)
    np.testing.assert_allclose(among_others, alone, atol=1e-6)


def begin(runner: TorchRunner, position: int, pages: Int32) -> Row:
    """A row whose history stands in `pages` up to `position`, the first to be fed."""
    work = make_work(position + 1, 4, seed=position)
    tokens = np.concatenate((runner.encode(work.history), np.zeros((4, 2), np.int32)))
    times = np.concatenate((work.history_stamps, work.future_stamps))
    runner.prefill(tokens[:position], times[:position], pages.tolist())
    return Row(tokens, times, runner.draws(0, 0, 4), pages, position, GREEDY)


@every_mode
@pytest.mark.parametrize("lookback", [1, 40, 90])
def test_embedding_is_the_mean_context(mode: Mode, lookback: int) -> None:
    """An embedding is the mean of the oracle's contexts over the last max_context candles."""
    checkpoint = golden_cases.checkpoint()
    work = make_work(lookback, 1)
    outcome = answer(mode.build(checkpoint), Embed(work.history, work.history_stamps))[0]
    with torch.no_grad():
        s1, s2 = (t[:, -checkpoint.max_context :] for t in checkpoint.tokenizer.encode(torch.from_numpy(work.history)[None]))
        times = torch.from_numpy(work.history_stamps[None, -checkpoint.max_context :])
        _, context = checkpoint.model.decode_s1(s1, s2, times)
    assert outcome.embedding is not None
    np.testing.assert_allclose(outcome.embedding, context[0].mean(0).numpy(), atol=2e-5)


@every_mode
def test_bfloat16_keeps_tokens_of_the_history_and_positions(mode: Mode) -> None:
    """Stored in bfloat16, the history's tokens are the same, and logits at far positions are off by rounding
    alone: rotary angles rounded to bfloat16 would be noise (rms error 1 of 1.6)."""
    checkpoint = golden_cases.checkpoint(512)
    work = make_work(500, 1)
    truth = by_oracle(checkpoint, work)
    runner = mode.build(checkpoint, Watched, dtype="bfloat16")
    assert isinstance(runner, Watched)
    answer(runner.watch(checkpoint), work)
    np.testing.assert_array_equal(runner.encode(work.history), truth.history_tokens)
    error = runner.logits[0][0] - truth.s1_logits[0]
    assert 1e-5 < np.sqrt(np.square(error).mean()) < 0.15


def test_train_mode_is_refused() -> None:
    """A model left in train mode cannot forecast by accident, nor can a tokenizer."""
    for part in ("model", "tokenizer"):
        checkpoint = replace(golden_cases.checkpoint())  # with modules of its own
        getattr(checkpoint, part).train()
        with pytest.raises(CheckpointError, match="train mode"):
            EAGER.build(checkpoint)


# --- drawing ------------------------------------------------------------------------------------------------

quarters = st.integers(-8, 8).map(lambda n: n / 4)  # few values, so that most rows have ties


@settings(**FEW, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(quarters, min_size=16, max_size=16),
            st.sampled_from((0.5, 1.0, 1.7)),
            st.integers(0, 18),
            st.sampled_from((0.0, 0.05, 0.25, 0.5, 0.9, 1.0)),
            st.floats(0, 1, exclude_max=True),
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_rows_are_filtered_and_drawn_as_one_by_one(
    rows: list[tuple[list[float], float, int, float, float]],
) -> None:
    """Rows with settings of their own get the very probabilities and draws of `sampling`, ties included."""
    values, temperature, top_k, top_p, u = (list(column) for column in zip(*rows, strict=True))
    logits, uniforms = torch.tensor(values), torch.tensor(u, dtype=torch.float64)
    probabilities = filter_rows(logits, torch.tensor(temperature), torch.tensor(top_k), torch.tensor(top_p))
    drawn = draw_rows(probabilities, uniforms)
    for i, (_, t, k, p, _) in enumerate(rows):
        wanted = sampling.filter_probabilities(logits[i : i + 1], t, k, p)
        assert torch.equal(probabilities[i : i + 1], wanted)
        assert torch.equal(drawn[i : i + 1], sampling.draw(wanted, uniforms[i : i + 1]))


@pytest.mark.parametrize("case", golden_cases.params("filter"))
def test_filter_goldens(case: Case) -> None:
    """Temperature, top_k and top_p keep exactly the reference's entries."""
    options, logits = case["kwargs"], torch.from_numpy(golden_cases.inputs(case)["logits"])
    top_p = 1.0 if options["top_p"] is None else options["top_p"]
    every = [torch.full((len(logits),), x) for x in (options["temperature"], options["top_k"] or 0, top_p)]
    probs = filter_rows(logits, *every).numpy()
    golden_cases.fraction_of_tolerance(case, probs=probs, keep=probs > 0)


@pytest.mark.parametrize(("pages", "wanted"), [(1, [1]), (4, [4]), (5, [4, 5]), (16, [4, 8, 16]), (64, [4, 8, 16, 32, 64])])
def test_buckets_double_up_to_the_whole_context(pages: int, wanted: list[int]) -> None:
    """Short contexts get short graphs, and the longest bucket holds the whole context."""
    assert context_buckets(pages) == wanted
