"""The CPU kernel and its runner against the oracle, the goldens and torch's sampling, on every build of it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from app import memory
from app.engine import Engine
from app.model import frames, sampling
from app.model import runner as runner_module
from app.model.config import PUBLISHED, Size
from app.model.draws import uniforms
from app.model.modules import random_checkpoint
from app.model.native import build
from app.model.native.build import KernelUnavailable
from app.model.native.runner import MAX_HISTORY, NativeRunner
from app.model.runner import build_runner
from app.model.weights import Checkpoint
from app.pages import pages_for
from app.work import Float32, Float64, Forecast, Int16, Int32, Row, Runner, Sampling
from tests import golden_cases, oracle
from tests.golden_cases import Array, Case
from tests.kernel_cases import (
    GREEDY,
    LOCAL_ISAS,
    Generated,
    Watched,
    build_watched,
    every_isa,
    generate,
    last_logits,
    make_size,
    random_forecast,
    random_stamps,
    sizes,
)

LOGIT_ATOL = 1e-4  # the goldens' own tolerances
PATH_ATOL = 2e-5
EXPLORE = (Phase.explicit, Phase.reuse, Phase.generate)  # no shrinking: an example is a few numbers anyway
SAMPLINGS = (GREEDY, Sampling(0.8, 0, 0.9), Sampling(1.3, 3, 0.5), Sampling(1.0, 0, 1.0), Sampling(2.0, 0, 0.3))
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def by_oracle(checkpoint: Checkpoint, work: Forecast) -> oracle.Generation:
    return oracle.generate(
        checkpoint, work.history, work.history_stamps, work.future_stamps, temperature=work.temperature,
        top_k=work.top_k, top_p=work.top_p, sample_count=work.sample_count, seed=work.seed,
    )  # fmt: skip


def answer(runner: Runner, work: Forecast) -> Float32:
    """The paths of one forecast, through an engine."""
    engine = Engine(runner)
    engine.start()
    try:
        engine.prewarm()
        with engine.reserve() as permit:
            paths = permit.submit(work, time.monotonic() + 60).future.result(60).paths
    finally:
        engine.stop()
    assert paths is not None
    return paths


# --- the oracle ---------------------------------------------------------------------------------------------


def first_difference(made: Generated, truth: oracle.Generation, path: int) -> tuple[int, int] | None:
    """Step and which (0: s1, 1: s2) of the first token of a path that is not the oracle's."""
    different = np.argwhere(made.tokens[path] != truth.tokens[path])
    return (int(different[0, 0]), int(different[0, 1])) if len(different) else None


def check_against_oracle(made: Generated, truth: oracle.Generation, work: Forecast) -> None:
    """Tokens are equal, but for a draw whose logits or uniform lie within rounding of the boundary: it may fall to
    the neighbour, and what follows on that path is then another, equally right forecast."""
    np.testing.assert_array_equal(made.history_tokens, truth.history_tokens)
    how = Sampling(work.temperature, work.top_k, work.top_p)
    for path in range(work.sample_count):
        difference = first_difference(made, truth, path)
        steps = difference[0] if difference else len(work.future_stamps)
        np.testing.assert_allclose(made.s1_logits[path, :steps], truth.s1_logits[path, :steps], atol=LOGIT_ATOL)
        np.testing.assert_allclose(made.s2_logits[path, :steps], truth.s2_logits[path, :steps], atol=LOGIT_ATOL)
        if difference is None:
            atol = PATH_ATOL * max(1.0, float(truth.paths[path].std()))  # random tokenizers decode to any scale
            np.testing.assert_allclose(made.paths[path], truth.paths[path], atol=atol, rtol=1e-5)
            continue
        event("a draw on the boundary")
        step, which = difference
        logits = (truth.s1_logits, truth.s2_logits)[which][path, step]
        u = uniforms(work.seed, path, len(work.future_stamps))[step, which]
        assert int(made.tokens[path, step, which]) in near_draws(logits, how, float(u), nudge=1e-4)


def truth_draw(logits: Float32, how: Sampling, u: float) -> int:
    """The token that `sampling`'s filter and draw yield."""
    kept = sampling.filter_probabilities(torch.from_numpy(logits)[None], how.temperature, how.top_k, how.top_p)
    return int(sampling.draw(kept, torch.tensor([u], dtype=torch.float64)))


def near_draws(logits: Float32, how: Sampling, u: float, nudge: float) -> set[int]:
    """Every token that can be drawn when rounding moves what is compared by up to `nudge`: uniform, top_p, and
    logits (over temperature) that all but tie."""
    scaled = logits / np.float32(how.temperature)
    rounded = (np.round(scaled.astype(np.float64) / nudge) * nudge).astype(np.float32)
    moved = [min(max(u + way * nudge, 0.0), 1 - 2**-53) for way in (-1, 0, 1)]
    hows = [Sampling(1.0, how.top_k, how.top_p + way * nudge if how.top_p < 1 else 1.0) for way in (-1, 0, 1)]
    return {truth_draw(*case) for case in itertools.product((scaled, rounded), hows, moved)}


@settings(max_examples=20, deadline=None, phases=EXPLORE)
@given(
    size=sizes(), seed=st.integers(0, 2**32), lookback=st.integers(1, 80), horizon=st.integers(1, 40),
    sample_count=st.integers(1, 3), how=st.sampled_from(SAMPLINGS),
)  # fmt: skip
def test_the_kernel_is_the_oracle(size: Size, seed: int, lookback: int, horizon: int, sample_count: int, how: Sampling) -> None:
    """Any shape of model, any request, fitting or rolling, on every build: the oracle's tokens, logits, candles."""
    checkpoint, rng = random_checkpoint(size, seed), np.random.default_rng(seed)
    work = random_forecast(rng, lookback, min(horizon, checkpoint.max_context), how, sample_count, seed)
    truth = by_oracle(checkpoint, work)
    for isa in LOCAL_ISAS:
        check_against_oracle(generate(build_watched(checkpoint, isa=isa), work, rng), truth, work)


@every_isa
def test_a_published_size(isa: str) -> None:
    """The published mini configuration: 1024 tokens, four heads of 64, 2048 candles of context."""
    checkpoint = random_checkpoint(PUBLISHED["mini"], seed=1)
    rng = np.random.default_rng(1)
    work = random_forecast(rng, 130, 3, Sampling(1.0, 0, 0.9), sample_count=2)
    check_against_oracle(generate(build_watched(checkpoint, isa=isa), work, rng), by_oracle(checkpoint, work), work)


@every_isa
def test_heads_that_fill_no_vector(isa: str) -> None:
    """Base's width of 832 in 16 heads of 52, padded in the cache, and cross attention heads of 208."""
    size = replace(PUBLISHED["base"], model=replace(PUBLISHED["base"].model, n_layers=1, ff_dim=300), max_context=40)
    checkpoint, rng = random_checkpoint(size, seed=2), np.random.default_rng(2)
    work = random_forecast(rng, 37, 6)
    check_against_oracle(generate(build_watched(checkpoint, isa=isa), work, rng), by_oracle(checkpoint, work), work)


@pytest.mark.parametrize("lookback", [1, 2, 40, 64, 90])
def test_an_embedding_is_the_mean_of_the_hidden_states(lookback: int) -> None:
    """The mean of the model's last hidden states over the last `max_context` candles, as torch has them."""
    checkpoint = golden_cases.checkpoint()
    work = random_forecast(np.random.default_rng(lookback), lookback, 1)
    with torch.no_grad():
        s1, s2 = (t[:, -checkpoint.max_context :] for t in checkpoint.tokenizer.encode(torch.from_numpy(work.history)[None]))
        stamps = torch.from_numpy(work.history_stamps[None, -checkpoint.max_context :])
        _, context = checkpoint.model.decode_s1(s1, s2, stamps)
    for isa in LOCAL_ISAS:
        vector = build_watched(checkpoint, isa=isa).embed(work.history, work.history_stamps)
        np.testing.assert_allclose(vector, context[0].mean(0).numpy(), atol=PATH_ATOL)


def test_a_history_too_long_is_refused() -> None:
    """More candles than the tokenizer has room for is a ValueError that says how many it takes."""
    history = np.zeros((MAX_HISTORY + 1, 6), np.float32)
    with pytest.raises(ValueError, match=f"longer than {MAX_HISTORY}"):
        build_watched(golden_cases.checkpoint()).encode(history)


def test_the_longest_history_is_tokenised_whole() -> None:
    """All candles up to the limit are encoded, with positions to the end."""
    checkpoint = golden_cases.checkpoint()
    history = np.random.default_rng(3).standard_normal((MAX_HISTORY, 6)).astype(np.float32)
    with torch.no_grad():
        truth = torch.stack(checkpoint.tokenizer.encode(torch.from_numpy(history)[None]), -1)[0].numpy()
    np.testing.assert_array_equal(build_watched(checkpoint).encode(history), truth)


# --- goldens, through the engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_engine() -> Iterator[Callable[[str, int], tuple[Engine, Watched]]]:
    """Engines over the golden checkpoint by build and context, each made once."""
    made: dict[tuple[str, int], tuple[Engine, Watched]] = {}

    def engine(isa: str, max_context: int) -> tuple[Engine, Watched]:
        if (isa, max_context) not in made:
            runner = build_watched(golden_cases.checkpoint(max_context), isa=isa)
            made[isa, max_context] = Engine(runner), runner
            made[isa, max_context][0].start()
            made[isa, max_context][0].prewarm()
        return made[isa, max_context]

    yield engine
    for each, _ in made.values():
        each.stop()


@every_isa
@pytest.mark.parametrize("case", golden_cases.params("predict", "predict_batch"))
def test_greedy_goldens(golden_engine: Callable[[str, int], tuple[Engine, Watched]], isa: str, case: Case) -> None:
    """Every recorded greedy forecast comes out of engine and kernel: tokens exactly, candles within tolerance."""
    given, options = golden_cases.inputs(case), case["kwargs"]
    engine, runner = golden_engine(isa, case["max_context"])
    batch = [(frame, given[f"values{i}"]) for i, frame in enumerate(case.get("batch", []))] or [(case, given["values"])]
    parts: dict[str, list[Array]] = {name: [] for name in ("pred", "pred_norm", "gen_s1", "gen_s2")}
    for frame, values in batch:
        filled = frames.fill_missing(golden_cases.columns(frame["columns"], values))
        x, mean, std = frames.normalise(filled, case.get("clip", frames.CLIP))
        past, future = (frames.stamp_features(golden_cases.stamps(frame[name])) for name in ("x_timestamps", "y_timestamps"))
        work = Forecast(x, past, future, options["T"], options["top_k"], options["top_p"], options["sample_count"])
        with engine.reserve() as permit:
            paths = permit.submit(work, time.monotonic() + 60).future.result(60).paths
        assert paths is not None
        parts["pred"].append(frames.restore(paths.mean(0), mean, std)[None])
        parts["pred_norm"].append(paths)
        parts["gen_s1"].append(runner.generated[..., 0])
        parts["gen_s2"].append(runner.generated[..., 1])
    wanted = {**case, "outputs": {name: case["outputs"][name] for name in parts}}
    answers = {name: np.concatenate(made).reshape(case["outputs"][name]["shape"]) for name, made in parts.items()}
    golden_cases.fraction_of_tolerance(wanted, **answers)


# --- bitwise ------------------------------------------------------------------------------------------------


@every_dtype
@settings(max_examples=12, deadline=None, phases=EXPLORE)
@given(size=sizes(), seed=st.integers(0, 2**32), data=st.data())
def test_prefill_and_decode_agree_to_the_bit(dtype: str, size: Size, seed: int, data: st.DataObject) -> None:
    """However many of its candles are prefilled at once and how many decoded one by one, a path's logits are the
    same bits."""
    checkpoint, rng = random_checkpoint(size, seed), np.random.default_rng(seed)
    count = data.draw(st.integers(2, checkpoint.max_context), label="candles")
    splits = sorted({0, count - 1, *data.draw(st.lists(st.integers(0, count - 1), max_size=3), label="prefilled")})
    bits = checkpoint.model_config.s1_bits, checkpoint.model_config.s2_bits
    tokens = np.stack([rng.integers(0, 2**n, count) for n in bits], 1).astype(np.int32)
    stamps = random_stamps(rng, count)
    for isa in LOCAL_ISAS:
        runner = build_watched(checkpoint, isa=isa, dtype=dtype)
        pages = [rng.permutation(runner.num_pages)[: pages_for(count)].astype(np.int32) for _ in splits]
        made = [last_logits(runner, tokens, stamps, *how) for how in zip(splits, pages, strict=True)]
        for other in made[1:]:
            np.testing.assert_array_equal(other.view(np.int32), made[0].view(np.int32))


@every_isa
@every_dtype
def test_a_row_is_the_same_bits_in_any_batch(isa: str, dtype: str) -> None:
    """One step of a path beside 0 to 39 others, in any place: the logits do not change by a bit."""
    checkpoint = random_checkpoint(make_size(width=80, heads=5, ff=100, bits=(6, 5)), seed=4)
    runner = build_watched(checkpoint, isa=isa, dtype=dtype, num_slots=40)
    rng, rows = np.random.default_rng(4), []
    for number in range(40):
        count = int(rng.integers(1, 64))
        tokens = np.stack([rng.integers(0, 2**n, count + 1) for n in (6, 5)], 1).astype(np.int32)
        stamps, pages = random_stamps(rng, count + 1), np.arange(2 * number, 2 * number + 2, dtype=np.int32)
        runner.prefill(tokens[: count - 1], stamps[: count - 1], pages.tolist())
        rows.append(Row(tokens, stamps, rng.random((1, 2)), pages, count - 1, Sampling(1.0, 0, 0.9)))
    alone = []
    for row in rows:
        runner.decode([row], [row.first])
        alone.append((runner.s1_logits[0], runner.s2_logits[0], row.tokens[-1].copy()))
    for size in (2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 31, 33, 40):
        chosen = rng.permutation(40)[:size]
        runner.decode([rows[i] for i in chosen], [rows[i].first for i in chosen])
        for place, i in enumerate(chosen):
            np.testing.assert_array_equal(runner.s1_logits[place], alone[i][0])
            np.testing.assert_array_equal(runner.s2_logits[place], alone[i][1])
            np.testing.assert_array_equal(rows[i].tokens[-1], alone[i][2])


# --- accuracy of the builds and of bfloat16 -----------------------------------------------------------------


def logits_along(runner: Watched, tokens: Int32, stamps: Int16) -> Float32:
    """Logits, s1 then s2, after every seventh of the tokens, each decoded behind a prefill of those before it."""
    pages = np.arange(pages_for(len(tokens)), dtype=np.int32)
    ends = range(1, len(tokens) + 1, 7)
    return np.stack([last_logits(runner, tokens[:end], stamps[:end], end - 1, pages) for end in ends])


def random_series(seed: int, count: int) -> tuple[Int32, Int16]:
    """Tokens and stamps for a model of 10 + 10 bits."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1024, (count, 2)).astype(np.int32), random_stamps(rng, count)


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return random_checkpoint(replace(PUBLISHED["mini"], max_context=256), seed=5)


def test_builds_agree(mini: Checkpoint) -> None:
    """Every instruction set of this processor computes the same logits, within rounding."""
    series = random_series(5, 120)
    first, *others = [logits_along(build_watched(mini, isa=isa), *series) for isa in LOCAL_ISAS]
    for other in others:
        np.testing.assert_allclose(other, first, atol=LOGIT_ATOL)


def test_bfloat16_is_off_by_rounding_alone(mini: Checkpoint) -> None:
    """Stored in bfloat16, logits of a sharp random model stay within 3 % (rms) of float32 over positions up to
    200, on every build; rotary angles in bfloat16 would be noise there."""
    series = random_series(6, 200)
    exact = logits_along(build_watched(mini), *series)
    for isa in LOCAL_ISAS:
        short = logits_along(build_watched(mini, isa=isa, dtype="bfloat16"), *series)
        error = np.sqrt(np.square(short - exact).mean(1) / np.square(exact).mean(1))
        print(f"{isa}: rms error {np.sqrt(np.square(short - exact).mean()):.4f} of {exact.std():.2f}, "
              f"{error.mean():.4f} relative, at worst {error.max():.4f}")  # fmt: skip
        assert error.mean() < 0.03
        assert 1e-4 < error.max() < 0.12


# --- the draw -----------------------------------------------------------------------------------------------


def with_logits(checkpoint: Checkpoint, s1_logits: Float32, s2_logits: Float32) -> Checkpoint:
    """The checkpoint with heads that answer these logits whatever they are asked."""
    heads: dict[str, Float32] = {
        f"head.proj_{name}.{part}": array
        for name, logits in (("s1", s1_logits), ("s2", s2_logits))
        for part, array in (("weight", np.zeros((len(logits), checkpoint.model_config.d_model), np.float32)), ("bias", logits))
    }
    return replace(checkpoint, model_tensors={**checkpoint.model_tensors, **heads})


def random_logits(rng: np.random.Generator, size: int) -> Float32:
    """Of every sharpness; in quarters, so that many tie; or in two values only."""
    logits = rng.standard_normal(size) * rng.choice([0.01, 1.0, 3.0, 30.0]) + rng.choice([0.0, -50.0, 50.0])
    match rng.integers(4):
        case 0:
            logits = np.round(logits * 4) / 4
        case 1:
            logits = np.where(logits > np.median(logits), 1.5, -1.0)
    return np.asarray(logits, np.float32)


def random_sampling(rng: np.random.Generator, size: int) -> Sampling:
    top_k = int(rng.choice([0, 0, 0, 1, 2, 5, size - 1, size, size + 7]))
    top_p = float(rng.choice([1e-6, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 0.9999, 1.0]))
    return Sampling(float(rng.choice([0.001, 0.1, 0.5, 1.0, 2.0, 10.0])), top_k, top_p)


@every_isa
def test_the_draw_is_that_of_the_reference(isa: str) -> None:
    """Logits of every kind, ties among them, temperatures from 0.001 to 10, top_k up to past the vocabulary, top_p
    from nothing to all: the kernel's tokens are those of `sampling`'s filter and draw."""
    rng = np.random.default_rng(7)
    num_rows, num_draws, nudged = 24, 0, 0
    for bits in [(3, 4), (6, 5), (10, 9)] * 15:
        base = random_checkpoint(make_size(width=16, heads=1, layers=1, ff=16, bits=bits, max_context=2), seed=1)
        logits = [random_logits(rng, 2**n) for n in bits]
        runner = build_watched(with_logits(base, *logits), isa=isa, num_slots=num_rows)
        rows = []
        for number in range(num_rows):
            tokens, stamps, pages = np.zeros((2, 2), np.int32), random_stamps(rng, 2), np.array([number], np.int32)
            how = random_sampling(rng, 2 ** bits[number % 2])
            draws = np.where(rng.random((1, 2)) < 0.1, rng.choice([2**-53, 1 - 2**-53]), rng.random((1, 2)))
            rows.append(Row(tokens, stamps, draws, pages, 0, how))
        runner.decode(rows, [0] * num_rows)
        np.testing.assert_array_equal(runner.s1_logits[0], logits[0])
        for row in rows:
            for which in (0, 1):
                drawn, u = int(row.tokens[1, which]), float(row.draws[0, which])
                num_draws += 1
                if drawn == truth_draw(logits[which], row.sampling, u):
                    continue
                nudged += 1
                near = near_draws(logits[which], row.sampling, u, nudge=1e-6)
                assert drawn in near, f"{drawn} for u = {u}, {row.sampling}: one of {sorted(near)} is right"
    print(f"{isa}: {nudged} of {num_draws} draws fell to the neighbour by rounding")
    assert nudged <= num_draws // 1000


def drawn_with(logits: Float32, how: Sampling, uniforms: Float64) -> list[int]:
    """The s1 token that the kernel draws from a power of two of logits with each uniform number."""
    bits = (len(logits).bit_length() - 1, 3)
    base = random_checkpoint(make_size(width=16, heads=1, layers=1, ff=16, bits=bits, max_context=2), seed=1)
    runner = build_watched(with_logits(base, logits, np.zeros(8, np.float32)), num_slots=1)
    stamps, pages = random_stamps(np.random.default_rng(0), 2), np.array([0], np.int32)
    rows = [Row(np.zeros((2, 2), np.int32), stamps, np.full((1, 2), u), pages, 0, how) for u in uniforms]
    runner.decode(rows, [0] * len(rows))
    return [int(row.tokens[1, 0]) for row in rows]


def test_equal_chances_split_the_unit_interval() -> None:
    """Of n equal logits, number i is drawn from i/n inclusive to (i + 1)/n exclusive: nothing is off by one."""
    equal = np.zeros(16, np.float32)
    below = np.arange(1, 17) / 16 - 2**-53
    for how in (Sampling(1.0, 0, 1.0), Sampling(1.0, 5, 1.0), Sampling(0.1, 16, 0.1)):
        assert drawn_with(equal, how, np.arange(16) / 16) == list(range(16))
        assert drawn_with(equal, how, below) == list(range(16))


def test_an_exact_tie_for_the_best_stays_a_tie() -> None:
    """top_k = 1 keeps all that tie for the best, as the reference does; otherwise it is the best, whatever the draw."""
    logits = np.array([0, 7, 1, 7, 3, -2, 5, 6], np.float32)
    uniforms = np.array([0.0, 0.49, 0.5, 0.99])
    assert drawn_with(logits, GREEDY, uniforms) == [1, 1, 3, 3]
    logits[3] = np.nextafter(np.float32(7), np.float32(8))
    assert drawn_with(logits, GREEDY, uniforms) == [3, 3, 3, 3]


@pytest.mark.parametrize("case", golden_cases.params("filter"))
def test_filter_goldens(case: Case) -> None:
    """Over a fine grid of uniforms the kernel draws exactly the entries that the reference keeps, each as often as
    its probability says."""
    options, grid = case["kwargs"], 400
    how = Sampling(options["temperature"], options["top_k"] or 0, 1.0 if options["top_p"] is None else options["top_p"])
    given, wanted = golden_cases.inputs(case)["logits"], golden_cases.outputs(case)
    for logits, keep, probs in zip(given, wanted["keep"], wanted["probs"], strict=True):
        drawn = drawn_with(logits, how, (np.arange(grid) + 0.5) / grid)
        counts = np.bincount(drawn, minlength=len(logits))
        assert not counts[~keep].any()
        np.testing.assert_allclose(counts / grid, probs, atol=1.01 / grid)


# --- how it is built, and what happens without it -----------------------------------------------------------


@pytest.fixture
def _nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kernel has been built or loaded, and none that others use is touched."""
    monkeypatch.setattr(build, "LIBRARIES", tmp_path / "lib")
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("_nothing_built")
class TestUnavailable:
    """Every reason why there can be no kernel is a KernelUnavailable that says what to do about it."""

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without a compiler the message names those that would do."""
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(KernelUnavailable, match=r"no C\+\+ compiler.*install g\+\+ or clang\+\+, or set CXX"):
            build.load()

    def test_a_failing_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What the compiler says is in the message, and no half-built library is left."""
        source = tmp_path / "kernel.cpp"
        source.write_text("this is not C++;\n")
        monkeypatch.setattr(build, "SOURCE", source)
        with pytest.raises(KernelUnavailable, match=r"failed:\n.*kernel.cpp:1"):
            build.load()
        assert not list((tmp_path / "lib").iterdir())

    def test_a_compiler_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A CXX that cannot be run is named."""
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(KernelUnavailable, match="no-such-compiler"):
            build.load()

    def test_a_folder_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A read-only installation without a built kernel says where it would have been built."""
        (tmp_path / "file").touch()
        monkeypatch.setattr(build, "LIBRARIES", tmp_path / "file" / "lib")
        with pytest.raises(KernelUnavailable, match="lib"):
            build.load()

    def test_a_processor_without_avx2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A processor that no build suits is told what it lacks."""
        monkeypatch.setattr(build, "processor_flags", lambda: {"sse2"})
        with pytest.raises(KernelUnavailable, match="needs AVX2"):
            build.load()

    def test_torch_takes_over(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Where no kernel can be had the worker still serves, by torch, warns why, and forecasts the same."""
        work = random_forecast(np.random.default_rng(8), 50, 20)
        monkeypatch.setenv("PATH", str(tmp_path))
        runner = build_runner(golden_cases.checkpoint(), num_slots=2, device="cpu")
        assert not isinstance(runner, NativeRunner)
        assert "install g++" in caplog.text
        np.testing.assert_allclose(answer(runner, work), by_oracle(golden_cases.checkpoint(), work).paths, atol=PATH_ATOL)


def test_without_excuse_the_kernel_runs() -> None:
    """Where the kernel can be built, the CPU's runner is the kernel's, and forecasts as the oracle does."""
    work = random_forecast(np.random.default_rng(8), 50, 20)
    runner = build_runner(golden_cases.checkpoint(), num_slots=2, device="cpu")
    assert isinstance(runner, NativeRunner)
    np.testing.assert_allclose(answer(runner, work), by_oracle(golden_cases.checkpoint(), work).paths, atol=PATH_ATOL)


def test_cuda_is_not_promised_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked for CUDA where there is no driver: an error that names the setting, no silent CPU."""
    monkeypatch.setattr(runner_module, "NVIDIA_DRIVER", tmp_path / "none")
    with pytest.raises(runner_module.RunnerUnavailable, match="KRONOS_DEVICE=cuda"):
        build_runner(golden_cases.checkpoint(), num_slots=2, device="cuda")


def test_a_cache_that_does_not_fit_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not under load, hours later: the sentence names both sizes and what to change."""
    monkeypatch.setattr(memory, "room_bytes", lambda: 10**5)
    with pytest.raises(runner_module.RunnerUnavailable, match=r"2 slots can grow to \d+ MB and 0 MB are left.*KRONOS_SLOTS"):
        build_runner(golden_cases.checkpoint(), num_slots=2, device="cpu")


@pytest.mark.parametrize("limit, room", [("max\n", 7_000_000), ("9223372036854771712", 7_000_000), ("5000000", 1_000_000)])
def test_room_is_the_smaller_of_limit_and_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, room: int) -> None:
    """What the container may still take, unless the machine has less; "max" and version 1's huge number are no limit."""
    for name, text in {"limit": limit, "meminfo": "MemTotal: 9 kB\nMemAvailable: 6836 kB\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "none", tmp_path / "limit"))
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_resident", lambda: 4_000_000)
    assert memory.room_bytes() == pytest.approx(room, rel=0.01)


def test_without_torch_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image without torch on a processor without a kernel: what is missing, and where it comes from."""

    def no_kernel(*_: object, **__: object) -> None:
        raise build.KernelUnavailable("no AVX2")

    monkeypatch.setattr(runner_module, "NativeRunner", no_kernel)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(runner_module.RunnerUnavailable, match="TORCH_INDEX"):
        build_runner(golden_cases.checkpoint(), num_slots=2, device="cpu")
