"""The published layout: which tensors a checkpoint of a configuration holds, by name and shape.

Knows names only; the modules in tokenizer.py and transformer.py carry the same ones (a test compares them).
"""

from __future__ import annotations

from app.model.config import CROSS_HEADS, NUM_FEATURES, STAMP_TABLES, ModelConfig, TokenizerConfig

Shapes = dict[str, tuple[int, ...]]

INTEGER_TENSORS = frozenset({"tokenizer.bsq.basis", "tokenizer.bsq.group_basis"})
"""Stored as int64; all others are floating point."""


def tokenizer_shapes(config: TokenizerConfig) -> Shapes:
    """Every tensor of a tokenizer; one block fewer than declared stands on each side."""
    width, bits = config.d_model, config.num_bits
    shapes = {
        **_linear("embed", width, NUM_FEATURES),
        **_linear("head", NUM_FEATURES, width),
        **_linear("quant_embed", bits, width),
        **_linear("post_quant_embed_pre", width, config.s1_bits),
        **_linear("post_quant_embed", width, bits),
        "tokenizer.bsq.basis": (bits,),
        "tokenizer.bsq.group_basis": (config.group_size,),
    }
    for side, declared in (("encoder", config.n_enc_layers), ("decoder", config.n_dec_layers)):
        for index in range(declared - 1):
            shapes |= _block(f"{side}.{index}", config)
    return shapes


def model_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of a model."""
    width, s1_size, s2_size = config.d_model, 2**config.s1_bits, 2**config.s2_bits
    table = "weight" if config.learn_te else "emb.weight"
    shapes = {
        "embedding.emb_s1.weight": (s1_size, width),
        "embedding.emb_s2.weight": (s2_size, width),
        **_linear("embedding.fusion_proj", width, 2 * width),
        **{f"time_emb.{name}_embed.{table}": (rows, width) for name, rows in STAMP_TABLES},
        "norm.weight": (width,),
        **_attention("dep_layer.cross_attn", width, CROSS_HEADS),
        "dep_layer.norm.weight": (width,),
        **_linear("head.proj_s1", s1_size, width),
        **_linear("head.proj_s2", s2_size, width),
    }
    for index in range(config.n_layers):
        shapes |= _block(f"transformer.{index}", config)
    return shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _attention(name: str, width: int, heads: int) -> Shapes:
    shapes: Shapes = {f"{name}.rotary.inv_freq": (width // heads // 2,)}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{name}.{part}", width, width)
    return shapes


def _block(name: str, config: TokenizerConfig | ModelConfig) -> Shapes:
    width, ff = config.d_model, config.ff_dim
    return {
        f"{name}.norm1.weight": (width,),
        f"{name}.norm2.weight": (width,),
        f"{name}.ffn.w1.weight": (ff, width),
        f"{name}.ffn.w3.weight": (ff, width),
        f"{name}.ffn.w2.weight": (width, ff),
        **_attention(f"{name}.self_attn", width, config.n_heads),
    }
