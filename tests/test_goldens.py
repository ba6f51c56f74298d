"""The clean-room model against the recorded numbers of the reference implementation, case by case."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from app.model import frames, sampling
from tests import golden_cases, oracle
from tests.golden_cases import Array, Case

KINDS_TESTED = {
    "tokenizer_encode", "tokenizer_decode", "tokenizer_forward", "time_features", "model_all_positions",
    "model_steps", "predict", "predict_batch", "auto_regressive", "filter", "first_step", "error",
}  # fmt: skip


def judge(case: Case, **answers: Array) -> None:
    """Check, and leave a line for ``pytest -rP``."""
    print(f"{golden_cases.fraction_of_tolerance(case, **answers):.3f} of the tolerance")


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in golden_cases.inputs(case).items()}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_every_kind_of_case_is_tested() -> None:
    """A kind of golden case added later does not go unnoticed."""
    assert {case["kind"] for case in golden_cases._all_cases()} == KINDS_TESTED


@pytest.mark.parametrize("case", golden_cases.params("tokenizer_encode"))
def test_encode(case: Case) -> None:
    """Candles become the reference's tokens, exactly, from the same last layer."""
    tokenizer, x = golden_cases.checkpoint().tokenizer, tensors(case)["x"]
    s1, s2 = tokenizer.encode(x)
    composite = s1 + (s2 << tokenizer.config.s1_bits)
    z = tokenizer.quantise(x)
    judge(case, s1=s1.numpy(), s2=s2.numpy(), composite=composite.numpy(), z=z.numpy())


@pytest.mark.parametrize("case", golden_cases.params("tokenizer_decode"))
def test_decode(case: Case) -> None:
    """Tokens become the reference's candles, whether they came as a pair or as one composite index."""
    tokenizer, given = golden_cases.checkpoint().tokenizer, tensors(case)
    recon = tokenizer.decode(given["s1"], given["s2"])
    low = 2**tokenizer.config.s1_bits
    from_composite = tokenizer.decode(given["composite"] % low, given["composite"] // low)
    judge(case, recon=recon.numpy(), recon_composite=from_composite.numpy())


@pytest.mark.parametrize("case", golden_cases.params("tokenizer_forward"))
def test_tokenizer_forward(case: Case) -> None:
    """The training pass yields the reference's reconstructions, and ``decode_s1`` is its coarse one."""
    tokenizer, x = golden_cases.checkpoint().tokenizer, tensors(case)["x"]
    result = tokenizer(x)
    judge(
        case, recon_s1=result.recon_s1.numpy(), recon=result.recon.numpy(),
        quantized=result.quantised.numpy(), composite=result.indices.numpy(),
    )  # fmt: skip
    torch.testing.assert_close(
        tokenizer.decode_s1(tokenizer.encode(x)[0]), result.recon_s1, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("case", golden_cases.params("time_features"))
def test_time_features(case: Case) -> None:
    """Wall-clock fields of stamps, Monday 0, days and months from 1."""
    judge(case, features=frames.stamp_features(golden_cases.stamps(case["timestamps"])))


@pytest.mark.parametrize("case", golden_cases.params("model_all_positions"))
def test_model_all_positions(case: Case) -> None:
    """Logits at every position, with as many s2 queries as positions: rotated, and seeing the future."""
    model, given = golden_cases.checkpoint().model, tensors(case)
    s1_logits, context = model.decode_s1(given["s1"], given["s2"], given.get("stamp"))
    s2_logits = model.decode_s2(context, given["s1_next"])
    judge(
        case,
        s1_logits=s1_logits.numpy(), context=context.numpy(), s2_logits=s2_logits.numpy(),
    )  # fmt: skip


@pytest.mark.parametrize("case", golden_cases.params("model_steps"))
def test_model_steps(case: Case) -> None:
    """Logits as generation asks for them: a growing window, one s2 query, nothing rotated (trap 11)."""
    model, given = golden_cases.checkpoint().model, tensors(case)
    s1_last, s2_last = [], []
    for n in range(1, given["s1"].shape[1] + 1):
        s1_logits, context = model.decode_s1(given["s1"][:, :n], given["s2"][:, :n], given["stamp"][:, :n])
        s2_logits = model.decode_s2(context, given["s1_next"][:, n - 1 : n])
        s1_last.append(s1_logits[:, -1])
        s2_last.append(s2_logits[:, -1])
    judge(
        case, s1_last=torch.stack(s1_last, 1).numpy(), s2_last=torch.stack(s2_last, 1).numpy(),
        s2_bcast=s2_logits.numpy(),
    )  # fmt: skip


@pytest.mark.parametrize("case", golden_cases.params("model_steps"))
def test_training_as_sampled_has_the_logits_of_inference(case: Case) -> None:
    """``forward_as_sampled`` yields in one pass what inference yields step by step, at every position."""
    model, given = golden_cases.checkpoint().model, tensors(case)
    s1_last, s2_last = model.forward_as_sampled(given["s1"], given["s2"], given["stamp"], given["s1_next"])
    steps_only = {**case, "outputs": {name: case["outputs"][name] for name in ("s1_last", "s2_last")}}
    judge(steps_only, s1_last=s1_last.numpy(), s2_last=s2_last.numpy())


def oracle_of(case: Case, frame: Case, values: Array) -> oracle.OracleResult:
    """Run a predict case's frame (columns, x_timestamps, y_timestamps) through the oracle, greedily."""
    options = case["kwargs"]
    return oracle.forecast(
        golden_cases.checkpoint(case["max_context"]),
        frames.fill_missing(golden_cases.columns(frame["columns"], values)),
        frames.stamp_features(golden_cases.stamps(frame["x_timestamps"])),
        frames.stamp_features(golden_cases.stamps(frame["y_timestamps"])),
        temperature=options["T"], top_k=options["top_k"], top_p=options["top_p"],
        sample_count=options["sample_count"], seed=0, clip=case.get("clip", frames.CLIP),
    )  # fmt: skip


def generation_answers(results: list[oracle.Generation], shapes: dict[str, Array]) -> dict[str, Array]:
    """Tokens, logits, normalised paths of series-major rows; a single row is recorded without a row axis."""
    rows: dict[str, list[Array]] = {
        "hist_s1": [np.repeat(r.history_tokens[None, :, 0], len(r.paths), 0) for r in results],
        "hist_s2": [np.repeat(r.history_tokens[None, :, 1], len(r.paths), 0) for r in results],
        "gen_s1": [r.tokens[..., 0] for r in results],
        "gen_s2": [r.tokens[..., 1] for r in results],
        "step_s1_logits": [r.s1_logits for r in results],
        "step_s2_logits": [r.s2_logits for r in results],
        "pred_norm": [r.paths for r in results],
    }
    return {name: np.concatenate(parts).reshape(shapes[name].shape) for name, parts in rows.items()}


@pytest.mark.parametrize("case", golden_cases.params("predict"))
def test_predict(case: Case) -> None:
    """One series: scale, tokens, logits at every step, and the forecast in its own units."""
    result = oracle_of(case, case, golden_cases.inputs(case)["values"])
    judge(
        case, pred=result.pred, x_mean=result.mean, x_std=result.std, x_norm=result.x,
        **generation_answers([result], golden_cases.outputs(case)),
    )  # fmt: skip


@pytest.mark.parametrize("case", golden_cases.params("predict_batch"))
def test_predict_batch(case: Case) -> None:
    """Several series: each one's answer is what it is alone."""
    given = golden_cases.inputs(case)
    results = [oracle_of(case, frame, given[f"values{i}"]) for i, frame in enumerate(case["batch"])]
    pred = np.stack([result.pred for result in results])
    judge(
        case, pred=pred, singles=pred, x_mean=np.stack([r.mean for r in results]),
        x_std=np.stack([r.std for r in results]), x_norm=np.stack([r.x for r in results]),
        **generation_answers(list(results), golden_cases.outputs(case)),
    )  # fmt: skip


@pytest.mark.parametrize("case", golden_cases.params("auto_regressive"))
def test_auto_regressive(case: Case) -> None:
    """Generation from arrays, input beyond the clip: the whole decoded window, averaged over samples."""
    given, options = golden_cases.inputs(case), case["kwargs"]
    clip = np.float32(options["clip"])
    results = [
        oracle.generate(
            golden_cases.checkpoint(options["max_context"]), x.clip(-clip, clip), past, future,
            temperature=options["T"], top_k=options["top_k"], top_p=options["top_p"],
            sample_count=options["sample_count"], seed=0,
        )
        for x, past, future in zip(given["x"], given["x_stamp"], given["y_stamp"], strict=True)
    ]  # fmt: skip
    judge(
        case, preds_full=np.stack([r.decoded.mean(0) for r in results]),
        **generation_answers(results, golden_cases.outputs(case)),
    )  # fmt: skip


@pytest.mark.parametrize("case", golden_cases.params("filter"))
def test_filter(case: Case) -> None:
    """Temperature, top_k and top_p keep exactly the reference's entries. Its None means: off."""
    options = case["kwargs"]
    top_p = 1.0 if options["top_p"] is None else options["top_p"]
    probs = sampling.filter_probabilities(
        tensors(case)["logits"], options["temperature"], options["top_k"] or 0, top_p
    ).numpy()
    judge(case, probs=probs, keep=probs > 0)


@pytest.mark.parametrize("case", golden_cases.params("first_step"))
def test_first_step(case: Case) -> None:
    """The exact distribution of the next candle: every s1, every s2 given it, mean, standard deviation."""
    both, given, options = golden_cases.checkpoint(case["max_context"]), tensors(case), case["kwargs"]
    filtered = (options["temperature"], options["top_k"], options["top_p"])
    s1, s2 = both.tokenizer.encode(given["x"])
    all_s1_logits, context = both.model.decode_s1(s1, s2, given["x_stamp"])
    s1_logits = all_s1_logits[:, -1]
    s1_probs = sampling.filter_probabilities(s1_logits, *filtered)[0]
    candidates = torch.arange(s1_probs.numel())
    s2_logits = torch.cat([both.model.decode_s2(context, s1[None, None])[:, -1] for s1 in candidates])
    s2_probs = sampling.filter_probabilities(s2_logits, *filtered)
    joint = s1_probs[:, None] * s2_probs
    pairs = torch.cartesian_prod(candidates, torch.arange(s2_probs.shape[1]))
    past = [tokens.expand(len(pairs), -1) for tokens in (s1, s2)]
    windows = [
        torch.cat((before, pairs[:, i : i + 1]), 1)[:, -both.max_context :] for i, before in enumerate(past)
    ]
    candles = both.tokenizer.decode(*windows)[:, -1].double()
    chance = joint.double().flatten()[:, None]
    expected = (chance * candles).sum(0) / chance.sum()
    spread = ((chance * (candles - expected).square()).sum(0) / chance.sum()).sqrt()
    judge(
        case, hist_s1=s1.numpy(), hist_s2=s2.numpy(), s1_logits=s1_logits[0].numpy(),
        s1_probs=s1_probs.numpy(), s2_logits=s2_logits.numpy(), s2_probs=s2_probs.numpy(),
        joint=joint.numpy(), expected_norm=expected.numpy(), sd_norm=spread.numpy(),
    )  # fmt: skip


# mistakes with pandas frames and stamps: refused where requests are read (a ragged batch is no mistake)
NOT_OURS = {"not_frame", "datetimeindex", "batch_lengths", "batch_y_short", "topk_none", "y_short", "y_long"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["id"]) for c in golden_cases.cases("error") if c["what"] not in NOT_OURS]
)
def test_wrong_calls_are_refused(case: Case) -> None:
    """What the reference refuses, and infinity, which it does not, is a ValueError here."""
    frame, values = dict(case), golden_cases.inputs(case)["values"].copy()
    match case["what"]:
        case "nan" | "inf":
            values[3, 2] = float(case["what"])
        case "missing_price":
            frame["columns"], values = case["columns"][1:], values[:, 1:]
        case "pred_gt_context" | "T_zero":
            pass  # wrong as recorded
        case unknown:
            pytest.fail(f"no such mistake: {unknown}")
    with pytest.raises(ValueError, match=r"low: values|'open' is missing|does not fit|temperature"):
        oracle_of(case, frame, values)
