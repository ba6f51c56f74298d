"""Training passes and numeric habits of the two networks; their inference is proven by the goldens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from app.model.config import ModelConfig, TokenizerConfig
from app.model.tokenizer import Tokenizer, bits_to_index, index_to_bits
from app.model.transformer import Kronos
from tests import golden_cases


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tokenizer_config() -> TokenizerConfig:
    return golden_cases.checkpoint().tokenizer.config


def model_config() -> ModelConfig:
    still: dict[str, Any] = {
        "ffn_dropout_p": 0.0,
        "attn_dropout_p": 0.0,
        "resid_dropout_p": 0.0,
        "token_dropout_p": 0.0,
    }
    return replace(golden_cases.checkpoint().model.config, **still)


def tokens(batch: int = 2, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """s1, s2, stamps and the true next s1."""
    s1, s2, s1_next = torch.randint(0, 16, (3, batch, length))
    return s1, s2, torch.randint(1, 7, (batch, length, 5)), s1_next


def test_indices_and_bits_are_inverse() -> None:
    """Least significant bit first, both ways."""
    index = torch.arange(1024)
    assert torch.equal(bits_to_index(index_to_bits(index, 10) > 0), index)
    assert index_to_bits(torch.tensor(1), 4).tolist() == [1, -1, -1, -1]


def test_unequal_bits_are_split_as_configured() -> None:
    """With 5 coarse and 3 fine bits, tokens decode to what their own bits say, together and coarse alone."""
    tokenizer = Tokenizer(replace(tokenizer_config(), s1_bits=5, s2_bits=3)).eval()
    x = torch.randn(2, 7, 6)
    s1, s2 = tokenizer.encode(x)
    result = tokenizer(x)
    assert torch.equal(s1 + (s2 << 5), result.indices)
    torch.testing.assert_close(tokenizer.decode(s1, s2), result.recon)
    torch.testing.assert_close(tokenizer.decode_s1(s1), result.recon_s1)


def test_encoder_and_decoder_are_causal() -> None:
    """A later candle or token does not change what came before it."""
    tokenizer = golden_cases.checkpoint().tokenizer
    x = torch.randn(1, 12, 6)
    changed = x.clone()
    changed[:, 8:] += 1
    torch.testing.assert_close(tokenizer.quantise(x)[:, :8], tokenizer.quantise(changed)[:, :8])
    s1, s2 = tokenizer.encode(x)
    other = s1.clone()
    other[:, 8:] ^= 1
    torch.testing.assert_close(tokenizer.decode(s1, s2)[:, :8], tokenizer.decode(other, s2)[:, :8])


def test_gradients_pass_the_signs() -> None:
    """The reconstruction error alone reaches every parameter, also those that lead to the bits."""
    tokenizer = Tokenizer(tokenizer_config()).train()
    result = tokenizer(torch.randn(3, 20, 6))
    (result.recon.square().mean() + result.recon_s1.square().mean()).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_quantiser_loss_prefers_used_codes() -> None:
    """The loss is lower when a batch spreads over the sphere than when all its candles share one code."""
    tokenizer = Tokenizer(tokenizer_config())
    spread = torch.nn.functional.normalize(torch.randn(1, 400, 8), dim=-1)
    signs = spread.sign() * 8**-0.5
    same = spread.abs()
    assert tokenizer._quantiser_loss(spread, signs) < tokenizer._quantiser_loss(same, same.sign() * 8**-0.5)


@pytest.mark.slow
def test_tokenizer_learns() -> None:
    """A few steps of training lower the reconstruction error of a fixed batch."""
    still: dict[str, Any] = {"ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0}
    tokenizer = Tokenizer(replace(tokenizer_config(), **still))
    x = torch.randn(4, 32, 6).cumsum(1) / 4
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        result = tokenizer(x)
        error = (result.recon - x).square().mean()
        optimiser.zero_grad()
        (error + (result.recon_s1 - x).square().mean() + result.quantiser_loss).backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 3


def test_model_learns_as_sampled() -> None:
    """Trained with ``forward_as_sampled``, inference's own calls predict a repeated pattern."""
    model = Kronos(model_config()).train()
    pattern = torch.tensor([3, 9, 1, 14, 6]).repeat(6)[None]
    s1, s2, s1_next, s2_next = pattern[:, :-1], 15 - pattern[:, :-1], pattern[:, 1:], 15 - pattern[:, 1:]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model.forward_as_sampled(s1, s2, None, s1_next)
        pairs = zip(logits, (s1_next, s2_next), strict=True)
        loss = sum(torch.nn.functional.cross_entropy(got[0], want[0]) for got, want in pairs)
        optimiser.zero_grad()
        torch.as_tensor(loss).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.eval()
    s1_logits, context = model.decode_s1(s1, s2, None)
    s2_logits = model.decode_s2(context, s1_next[:, -1:])
    assert int(s1_logits[0, -1].argmax()) == int(s1_next[0, -1])
    assert int(s2_logits[0, -1].argmax()) == int(s2_next[0, -1])


@pytest.mark.parametrize("route", ["forward", "forward_as_sampled"])
def test_training_does_not_see_the_future(route: str) -> None:
    """Neither later tokens nor later true s1 change the logits of earlier positions, in either mode."""
    s1, s2, stamps, s1_next = tokens()
    for model in (Kronos(model_config()).train(), Kronos(model_config()).eval()):
        logits = getattr(model, route)(s1, s2, stamps, s1_next)
        later = [array.clone() for array in (s1, s2, s1_next)]
        for array in later:
            array[:, 6:] ^= 1
        changed = getattr(model, route)(later[0], later[1], stamps, later[2])
        for one, other in zip(logits, changed, strict=True):
            torch.testing.assert_close(one[:, :6], other[:, :6])
            assert not torch.allclose(one[:, 6:], other[:, 6:])


def test_both_routes_agree_where_they_must() -> None:
    """The published route differs from inference in s2 only, and not at the first position."""
    model, given = golden_cases.checkpoint().model, tokens()
    (s1_published, s2_published), (s1_sampled, s2_sampled) = model(*given), model.forward_as_sampled(*given)
    torch.testing.assert_close(s1_published, s1_sampled)
    torch.testing.assert_close(s2_published[:, 0], s2_sampled[:, 0])
    assert not torch.allclose(s2_published[:, 1:], s2_sampled[:, 1:], atol=0.1)


def test_inference_refuses_train_mode_and_odd_queries() -> None:
    """decode_s1 and decode_s2 do not run in train mode, and take one query or as many as positions."""
    s1, s2, stamps, s1_next = tokens()
    model = Kronos(model_config()).train()
    with pytest.raises(RuntimeError, match="decode_s1 is inference"):
        model.decode_s1(s1, s2, stamps)
    _, context = model.eval().decode_s1(s1, s2, stamps)
    with pytest.raises(ValueError, match="1 or 9 queries, got 2"):
        model.decode_s2(context, s1_next[:, :2])
    with pytest.raises(RuntimeError, match="decode_s2 is inference"):
        model.train().decode_s2(context, s1_next[:, :1])


def test_rotary_frequencies_survive_a_cast() -> None:
    """In bfloat16 the rotary table stays float32, as stored: its cast would be noise at long contexts."""
    model = Kronos(model_config()).eval()
    exact = model.dep_layer.cross_attn.rotary.inv_freq.clone()
    model.to(torch.bfloat16)
    kept = model.dep_layer.cross_attn.rotary.inv_freq
    assert kept.dtype == torch.float32
    assert torch.equal(kept, exact)
    s1, s2, stamps, _ = tokens()
    assert model.decode_s1(s1, s2, stamps)[0].dtype == torch.bfloat16
