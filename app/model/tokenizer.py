"""The tokenizer: normalised candles ↔ pairs of tokens (coarse s1, fine s2) by binary spherical quantisation.

A causal encoder maps each candle to one vector; its signs are the bits (BSQ: Zhao et al. 2024, arXiv
2406.07548). Knows nothing of prices, stamps or generation: what it reads and writes is normalised already.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.model.config import TokenizerConfig
from app.model.layers import Block, initialise

# Sharpness of the soft bit assignment in the entropy terms: 4·10·u/√bits ≈ ±2 for a component of typical
# size at 20 bits, so that the average over a batch tells used codes from unused ones.
ENTROPY_SHARPNESS = 10.0


class Reconstruction(NamedTuple):
    """What ``Tokenizer.forward`` returns."""

    recon_s1: Tensor  # [B, L, 6] from the coarse bits alone
    recon: Tensor  # [B, L, 6] from all bits
    quantised: Tensor  # [B, L, bits], ±1/√bits; gradients pass straight through
    indices: Tensor  # int64 [B, L], s1 + s2 · 2^s1_bits
    quantiser_loss: Tensor  # scalar: commitment and entropy terms, weighted as the config says


class _BinarySphericalBuffers(nn.Module):
    """Tables of powers, most significant bit first. Published files hold them; nothing here reads them."""

    def __init__(self, num_bits: int, group_size: int) -> None:
        super().__init__()
        self.register_buffer("basis", _powers_of_two(num_bits).flip(0))
        self.register_buffer("group_basis", _powers_of_two(group_size).flip(0))


class _Quantiser(nn.Module):
    """The name ``tokenizer.bsq`` of the published layout."""

    def __init__(self, num_bits: int, group_size: int) -> None:
        super().__init__()
        self.bsq = _BinarySphericalBuffers(num_bits, group_size)


def _powers_of_two(count: int) -> Tensor:
    return torch.tensor([1 << bit for bit in range(count)])


def bits_to_index(bits: Tensor) -> Tensor:
    """bool [..., n] → int64 [...], least significant bit first."""
    return (bits.long() * _powers_of_two(bits.shape[-1]).to(bits.device)).sum(-1)


def index_to_bits(index: Tensor, num_bits: int) -> Tensor:
    """int64 [...] → float32 [..., num_bits] of ±1, least significant bit first."""
    shifts = torch.arange(num_bits, device=index.device)
    return ((index.unsqueeze(-1) >> shifts) & 1).float() * 2 - 1


class Tokenizer(nn.Module):
    """Attribute names are the published tensor names. One block fewer than declared is built on each side."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.embed = nn.Linear(config.d_in, width)
        self.head = nn.Linear(width, config.d_in)
        self.encoder = nn.ModuleList(_block(config) for _ in range(config.n_enc_layers - 1))
        self.decoder = nn.ModuleList(_block(config) for _ in range(config.n_dec_layers - 1))
        self.quant_embed = nn.Linear(width, config.num_bits)
        self.post_quant_embed_pre = nn.Linear(config.s1_bits, width)
        self.post_quant_embed = nn.Linear(config.num_bits, width)
        self.tokenizer = _Quantiser(config.num_bits, config.group_size)
        initialise(self)

    def quantise(self, x: Tensor) -> Tensor:
        """float32 [B, L, 6] → [B, L, bits]: the last linear layer's output, whose signs are the bits."""
        hidden = self.embed(x)
        for block in self.encoder:
            hidden = block(hidden)
        z: Tensor = self.quant_embed(hidden)
        return z

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised candles float32 [B, L, 6] → (s1, s2), int64 [B, L] each. A component of 0 is bit 0."""
        bits = functional.normalize(self.quantise(x), dim=-1) > 0
        coarse, fine = bits[..., : self.config.s1_bits], bits[..., self.config.s1_bits :]
        return bits_to_index(coarse), bits_to_index(fine)

    def decode(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Tokens int64 [B, L] each → normalised candles float32 [B, L, 6].

        Bits are split as s1_bits and s2_bits say (the reference's two-stream decode halves them: the same for
        every published size).
        """
        bits = torch.cat((index_to_bits(s1, self.config.s1_bits), index_to_bits(s2, self.config.s2_bits)), -1)
        return self._reconstruct(self.post_quant_embed(bits * self._scale))

    def decode_s1(self, s1: Tensor) -> Tensor:
        """Coarse tokens int64 [B, L] → normalised candles float32 [B, L, 6], without the fine bits."""
        bits = index_to_bits(s1, self.config.s1_bits)
        return self._reconstruct(self.post_quant_embed_pre(bits * self._scale))

    def forward(self, x: Tensor) -> Reconstruction:
        """Both reconstructions of normalised candles float32 [B, L, 6], and the quantiser's training loss.

        The gradient of the signs is that of the unit vector before them (straight-through estimator).
        """
        unit = functional.normalize(self.quantise(x), dim=-1)
        bits = unit > 0
        signs = (bits.float() * 2 - 1) * self._scale
        quantised = unit + (signs - unit).detach()
        return Reconstruction(
            recon_s1=self._reconstruct(self.post_quant_embed_pre(quantised[..., : self.config.s1_bits])),
            recon=self._reconstruct(self.post_quant_embed(quantised)),
            quantised=quantised,
            indices=bits_to_index(bits),
            quantiser_loss=self._quantiser_loss(unit, signs),
        )

    @property
    def _scale(self) -> float:
        """±1 bits times this lie on the unit sphere."""
        return float(self.config.num_bits**-0.5)

    def _reconstruct(self, hidden: Tensor) -> Tensor:
        for block in self.decoder:
            hidden = block(hidden)
        candles: Tensor = self.head(hidden)
        return candles

    def _quantiser_loss(self, unit: Tensor, signs: Tensor) -> Tensor:
        """``β·|u - q|² + ζ·(γ₀·E[H(q|u)] - γ·H(E[q|u]))`` as in BSQ: commit, be sure, use all codes.

        The soft assignment to ±1/√bits by squared distance factorises over bits: P(bit) =
        σ(4·sharpness·u/√bits). The batch entropy is taken over groups of ``group_size`` bits, since 2^bits
        codes cannot be counted.
        """
        config = self.config
        commitment = (unit - signs).square().sum(-1).mean()
        chance = torch.sigmoid(4 * ENTROPY_SHARPNESS * self._scale * unit).flatten(0, -2)  # [N, bits]
        sure = -(torch.xlogy(chance, chance) + torch.xlogy(1 - chance, 1 - chance)).sum(-1).mean()
        used = self._group_entropy(chance)
        entropy = (config.gamma0 * sure - config.gamma * used) / ENTROPY_SHARPNESS
        return config.beta * commitment + config.zeta * entropy

    def _group_entropy(self, chance: Tensor) -> Tensor:
        """Sum over groups of the entropy (nats) of the batch-averaged code distribution; chance [N, bits]."""
        grouped = chance.view(len(chance), -1, self.config.group_size)  # [N, groups, size]
        codes = torch.arange(2**self.config.group_size, device=chance.device)
        on = index_to_bits(codes, self.config.group_size) > 0  # [codes, size]
        factors = torch.where(on, grouped.unsqueeze(-2), 1 - grouped.unsqueeze(-2))
        average = factors.prod(-1).mean(0)  # [groups, codes]
        return -torch.xlogy(average, average).sum()


def _block(config: TokenizerConfig) -> Block:
    return Block(
        config.d_model,
        config.n_heads,
        config.ff_dim,
        ffn_dropout=config.ffn_dropout_p,
        attn_dropout=config.attn_dropout_p,
        resid_dropout=config.resid_dropout_p,
    )
