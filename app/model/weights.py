"""Checkpoints: where they lie, whether they are sound, and their versions.

Knows folders, the hub's cache, safetensors and hashes. Reads nothing that could run code (no pickles), and
knows nothing of how a checkpoint is used. Arrays only: torch is imported by those who ask for modules, since it
costs a worker 300 MB and more time than everything else at its start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from app.model.config import DEFAULT_MAX_CONTEXT, PUBLISHED, ModelConfig, TokenizerConfig
from app.model.layout import INTEGER_TENSORS, Shapes, model_shapes, tokenizer_shapes

if TYPE_CHECKING:
    from app.model.tokenizer import Tokenizer
    from app.model.transformer import Kronos

C = TypeVar("C", ModelConfig, TokenizerConfig)
Tensors = Mapping[str, NDArray[Any]]

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
VERSION_HEX_DIGITS = 12
LISTED_NAMES = 4  # tensors named in an error

_HUB_ID = re.compile(r"(?P<owner>[\w-][\w.-]*)/(?P<name>[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


NO_TORCH = "that needs torch, which is not installed here (an image has it unless it was built with TORCH_INDEX=none)"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A tokenizer and a model that fit each other, as arrays by their published names."""

    tokenizer_config: TokenizerConfig
    model_config: ModelConfig
    tokenizer_tensors: Tensors  # float32, but for INTEGER_TENSORS
    model_tensors: Tensors
    max_context: int  # candles
    model_version: str  # name@revision+first digits of the weights' sha256
    tokenizer_version: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The torch module: eval mode, float32, no gradients."""
        from app.model import modules

        return modules.tokenizer(self.tokenizer_config, self.tokenizer_tensors)

    @cached_property
    def model(self) -> Kronos:
        """The torch module: eval mode, float32, no gradients."""
        from app.model import modules

        return modules.model(self.model_config, self.model_tensors)


@dataclass(frozen=True)
class _Source:
    folder: Path
    name: str
    revision: str


def load(
    model: str, tokenizer: str, *, sha256: str | None = None, max_context: int | None = None
) -> Checkpoint:
    """Load a model and its tokenizer, each from a folder or a hub id ``owner/name@revision``.

    ``sha256`` is that of the model's safetensors file. ``max_context`` None: that of the published size
    with the same architecture, 512 for others. Raises CheckpointError for whatever is missing, unsound or
    does not fit.
    """
    model_source, tokenizer_source = _locate(model), _locate(tokenizer)
    model_config = _read_config(ModelConfig, model_source.folder)
    tokenizer_config = _read_config(TokenizerConfig, tokenizer_source.folder)
    bits, made = ((config.s1_bits, config.s2_bits) for config in (model_config, tokenizer_config))
    if bits != made:
        raise CheckpointError(f"not a pair: {model} reads {bits} bits (s1, s2), {tokenizer} makes {made}")
    if max_context is not None and max_context < 1:
        raise CheckpointError(f"max_context must be at least 1 candle, got {max_context}")
    model_hash, tokenizer_hash = _hash(model_source.folder), _hash(tokenizer_source.folder)
    if sha256 is not None and sha256.lower() != model_hash:
        raise CheckpointError(f"{model}: {WEIGHTS_FILE} has sha256 {model_hash}, expected {sha256.lower()}")
    return Checkpoint(
        tokenizer_config=tokenizer_config,
        model_config=model_config,
        tokenizer_tensors=_read_tensors(tokenizer_source.folder, tokenizer_shapes(tokenizer_config)),
        model_tensors=_read_tensors(model_source.folder, model_shapes(model_config)),
        max_context=max_context if max_context is not None else _published_context(model_config),
        model_version=_version(model_source, model_hash),
        tokenizer_version=_version(tokenizer_source, tokenizer_hash),
    )


def _locate(source: str) -> _Source:
    folder = Path(source)
    if folder.is_dir():
        resolved = folder.resolve()
        return _Source(folder, f"{resolved.parent.name}/{resolved.name}", "local")
    match = _HUB_ID.fullmatch(source)
    if match is None or source.startswith("."):
        raise CheckpointError(f"{source}: no such folder, and not a hub id (owner/name@revision)")
    return _from_hub(f"{match['owner']}/{match['name']}", match["revision"])


def _from_hub(repository: str, revision: str | None) -> _Source:
    import huggingface_hub  # here, since those who load a folder need not wait for it

    if revision is None:
        log.warning("%s has no @revision: what it loads can change; the newest is taken", repository)
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
        )
    except (OSError, ValueError) as error:  # the hub's own errors, offline or refused, are all one of the two
        raise CheckpointError(
            f"{repository}@{revision or 'main'}: not a folder, not in the hub's cache, and not to be had "
            f"from the hub ({type(error).__name__}). Check name, network and HF_HUB_OFFLINE, or give a folder"
        ) from error
    folder = Path(snapshot)  # named by its commit
    return _Source(folder, repository, revision=folder.name)


def _read_config(kind: type[C], folder: Path) -> C:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    try:
        return kind.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _hash(folder: Path) -> str:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
        hint = (
            f"; {', '.join(pickles)} can run code and is never read: convert it to safetensors"
            if pickles
            else ""
        )
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}{hint}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return load_file(path)
    except TypeError:  # numpy has no bfloat16: torch widens it
        try:
            import torch
            from safetensors.torch import load_file as load_with_torch
        except ModuleNotFoundError as error:
            raise CheckpointError(f"{path} is stored in bfloat16: {NO_TORCH}") from error

        stored = load_with_torch(path)
        return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in stored.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _read_tensors(folder: Path, wanted: Shapes) -> Tensors:
    path = folder / WEIGHTS_FILE
    stored = _read_file(path)
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit its {CONFIG_FILE}: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    return {name: _checked(path, name, tensor, wanted[name]) for name, tensor in stored.items()}


def _checked(path: Path, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {list(tensor.shape)}, its config.json wants {list(shape)}"
        )
    kind = np.dtype(np.int64 if name in INTEGER_TENSORS else np.float32)
    if not np.issubdtype(tensor.dtype, np.integer if kind == np.int64 else np.floating):
        raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}, wanted {kind}")
    if not np.isfinite(tensor).all():
        raise CheckpointError(f"{path}: {name} holds NaN or infinity")
    return tensor.astype(kind)


def _some(names: Set[str]) -> str:
    shown = sorted(names)[:LISTED_NAMES]
    return (", ".join(shown) or "none") + (
        f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    )


def _published_context(config: ModelConfig) -> int:
    """Training may change dropout, so the architecture alone decides."""
    shape = (config.n_layers, config.d_model, config.n_heads, config.ff_dim)
    for size in PUBLISHED.values():
        if shape == (size.model.n_layers, size.model.d_model, size.model.n_heads, size.model.ff_dim):
            return size.max_context
    return DEFAULT_MAX_CONTEXT


def _version(source: _Source, digest: str) -> str:
    return f"{source.name}@{source.revision}+{digest[:VERSION_HEX_DIGITS]}"
