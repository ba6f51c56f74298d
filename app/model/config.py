"""What a Kronos checkpoint's ``config.json`` says, and the sizes that were published.

Knows the keys, their meaning and which combinations can exist. Does not know files, tensors or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

NUM_FEATURES = 6  # open, high, low, close, volume, amount
NUM_STAMP_FIELDS = 5  # minute, hour, weekday, day, month
# rows of each time table, in the order of the stamp fields; days and months count from 1, row 0 is never read
STAMP_TABLES = (("minute", 60), ("hour", 24), ("weekday", 7), ("day", 32), ("month", 13))
CROSS_HEADS = 4  # the s2 cross attention's head count, whatever n_heads is


class _Config:
    """Reading and writing shared by both configurations: exactly the declared keys, no more and no fewer."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a parsed ``config.json``.

        Raises ValueError naming the key for an unknown key, a missing one, or a value of the wrong type or
        range.
        """
        wanted = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
        for problem, keys in (("unknown", set(values) - set(wanted)), ("missing", set(wanted) - set(values))):
            if keys:
                raise ValueError(f"{cls.__name__}: {problem} key {', '.join(map(repr, sorted(keys)))}")
        for name, kind in wanted.items():
            _check_type(cls.__name__, name, values[name], kind)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The keys of ``config.json`` with their values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def _check_type(owner: str, name: str, value: object, kind: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {"int": is_number and isinstance(value, int), "float": is_number, "bool": isinstance(value, bool)}
    if not right[kind]:
        raise ValueError(f"{owner}: {name!r} must be {kind}, got {value!r}")


def _check_shape(owner: str, config: TokenizerConfig | ModelConfig, counts: tuple[str, ...]) -> None:
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{owner}: {name!r} must be at least 1, got {getattr(config, name)}")
    for field in fields(config):
        if field.name.endswith("dropout_p") and not 0.0 <= getattr(config, field.name) < 1.0:
            raise ValueError(f"{owner}: {field.name!r} must be in [0, 1), got {getattr(config, field.name)}")
    if config.d_model % (2 * config.n_heads):
        raise ValueError(
            f"{owner}: 'd_model' {config.d_model} cannot make {config.n_heads} heads of even width"
        )


@dataclass(frozen=True)
class TokenizerConfig(_Config):
    """The tokenizer: d_in values of a candle → s1_bits coarse + s2_bits fine bits.

    ``n_enc_layers`` and ``n_dec_layers`` are as declared; one block fewer is built on each side.
    ``beta``, ``gamma0``, ``gamma``, ``zeta`` and ``group_size`` matter in training only.
    """

    d_in: int
    d_model: int
    n_heads: int
    ff_dim: int
    n_enc_layers: int
    n_dec_layers: int
    ffn_dropout_p: float
    attn_dropout_p: float
    resid_dropout_p: float
    s1_bits: int
    s2_bits: int
    beta: float
    gamma0: float
    gamma: float
    zeta: float
    group_size: int

    def __post_init__(self) -> None:
        owner = type(self).__name__
        sizes = ("d_model", "n_heads", "ff_dim", "s1_bits", "s2_bits", "group_size")
        _check_shape(owner, self, (*sizes, "n_enc_layers", "n_dec_layers"))
        if self.d_in != NUM_FEATURES:
            raise ValueError(f"{owner}: 'd_in' must be {NUM_FEATURES} (one candle), got {self.d_in}")
        if self.num_bits % self.group_size:
            raise ValueError(f"{owner}: 'group_size' {self.group_size} does not divide {self.num_bits} bits")

    @property
    def num_bits(self) -> int:
        """Bits of one candle, coarse and fine together."""
        return self.s1_bits + self.s2_bits


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The decoder-only model over (s1, s2) tokens.

    ``learn_te`` false: the time tables are loaded, but not trained further.
    """

    s1_bits: int
    s2_bits: int
    n_layers: int
    d_model: int
    n_heads: int
    ff_dim: int
    ffn_dropout_p: float
    attn_dropout_p: float
    resid_dropout_p: float
    token_dropout_p: float
    learn_te: bool

    def __post_init__(self) -> None:
        owner = type(self).__name__
        _check_shape(owner, self, ("s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim"))
        if self.d_model % (2 * CROSS_HEADS):
            raise ValueError(
                f"{owner}: 'd_model' {self.d_model} cannot make {CROSS_HEADS} heads of even width"
            )


@dataclass(frozen=True)
class Size:
    """A model, the tokenizer it goes with, and the longest context (candles) it was made for."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    max_context: int


DEFAULT_MAX_CONTEXT = 512  # of the published checkpoints, but for mini


def _published_tokenizer(group_size: int) -> TokenizerConfig:
    return TokenizerConfig(
        d_in=NUM_FEATURES, d_model=256, n_heads=4, ff_dim=512, n_enc_layers=4, n_dec_layers=4,
        ffn_dropout_p=0.0, attn_dropout_p=0.0, resid_dropout_p=0.0, s1_bits=10, s2_bits=10,
        beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05, group_size=group_size,
    )  # fmt: skip


def _published_model(
    n_layers: int, d_model: int, n_heads: int, ff_dim: int, block_dropout: float, token_dropout: float = 0.0
) -> ModelConfig:
    return ModelConfig(
        s1_bits=10, s2_bits=10, n_layers=n_layers, d_model=d_model, n_heads=n_heads, ff_dim=ff_dim,
        ffn_dropout_p=block_dropout, attn_dropout_p=token_dropout, resid_dropout_p=block_dropout,
        token_dropout_p=token_dropout, learn_te=True,
    )  # fmt: skip


PUBLISHED: dict[str, Size] = {
    "mini": Size(_published_model(4, 256, 4, 512, 0.2), _published_tokenizer(5), 2048),
    "small": Size(_published_model(8, 512, 8, 1024, 0.25, 0.1), _published_tokenizer(4), DEFAULT_MAX_CONTEXT),
    "base": Size(_published_model(12, 832, 16, 2048, 0.2), _published_tokenizer(4), DEFAULT_MAX_CONTEXT),
}
