"""Checkpoints: where they lie, whether they are sound, and their versions.

Knows folders, the hub's cache, safetensors and hashes. Reads nothing that could run code (no pickles), and
knows nothing of how a checkpoint is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.model.config import DEFAULT_MAX_CONTEXT, PUBLISHED, ModelConfig, Size, TokenizerConfig
from app.model.tokenizer import Tokenizer
from app.model.transformer import Kronos

C = TypeVar("C", ModelConfig, TokenizerConfig)
M = TypeVar("M", Tokenizer, Kronos)

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
VERSION_HEX_DIGITS = 12
LISTED_NAMES = 4  # tensors named in an error
RANDOM_GAIN = 1.5  # of random matrices: sharp attention, logits with a standard deviation of about 1.5

_HUB_ID = re.compile(r"(?P<owner>[\w-][\w.-]*)/(?P<name>[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A tokenizer and a model that fit each other: eval mode, float32, no gradients."""

    tokenizer: Tokenizer
    model: Kronos
    max_context: int  # candles
    model_version: str  # name@revision+first digits of the weights' sha256
    tokenizer_version: str


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
        tokenizer=_restore(Tokenizer, tokenizer_config, tokenizer_source.folder),
        model=_restore(Kronos, model_config, model_source.folder),
        max_context=max_context if max_context is not None else _published_context(model_config),
        model_version=_version(model_source, model_hash),
        tokenizer_version=_version(tokenizer_source, tokenizer_hash),
    )


def save(module: Tokenizer | Kronos, config: TokenizerConfig | ModelConfig, folder: Path | str) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the published layout; a missing folder is made.

    Raises CheckpointError when ``config`` is not the one the module was built with.
    """
    if config != module.config:
        raise CheckpointError(f"this {type(module).__name__} was built with another configuration")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config.as_dict(), indent=2, sort_keys=True) + "\n")


def random_checkpoint(size: Size, seed: int) -> Checkpoint:
    """A checkpoint with scaled random weights, for benchmarks and tests: its forecasts are noise."""
    with torch.random.fork_rng(devices=[]):  # leaves the process's own random state as it was
        torch.manual_seed(seed)
        modules = Tokenizer(size.tokenizer), Kronos(size.model)
        for module in modules:
            _randomise(module)
            _freeze(module)
    version = f"random@local+{seed:0{VERSION_HEX_DIGITS}x}"
    return Checkpoint(modules[0], modules[1], size.max_context, version, version)


def require_inference(module: torch.nn.Module) -> None:
    """Raise CheckpointError unless every part is in eval mode: dropout at random gives wrong forecasts."""
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise CheckpointError(f"{type(module).__name__} is in train mode ({training[0]}): call eval() first")


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


def _restore(kind: type[M], config: TokenizerConfig | ModelConfig, folder: Path) -> M:
    path = folder / WEIGHTS_FILE
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    # Initialised only to be overwritten: laying it out on the "meta" device imports torch's compiler, which takes longer.
    with torch.random.fork_rng(devices=[]):
        module = kind(config)  # type: ignore[arg-type]
    _check_tensors(path, module.state_dict(), stored)
    owned = {name: tensor.to(module.state_dict()[name].dtype, copy=True) for name, tensor in stored.items()}
    module.load_state_dict(owned, assign=True)
    _freeze(module)
    return module


def _check_tensors(path: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit its {CONFIG_FILE}: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, its config.json wants {list(wanted[name].shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}, wanted {wanted[name].dtype}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")


def _some(names: Set[str]) -> str:
    shown = sorted(names)[:LISTED_NAMES]
    return (", ".join(shown) or "none") + (
        f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    )


def _freeze(module: torch.nn.Module) -> None:
    module.eval().requires_grad_(False)
    require_inference(module)


def _randomise(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            fan_in = parameter.shape[
                1
            ]  # for an embedding, its width: the input embedding is multiplied by √width
            torch.nn.init.normal_(parameter, std=RANDOM_GAIN * fan_in**-0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)


def _published_context(config: ModelConfig) -> int:
    """Training may change dropout, so the architecture alone decides."""
    shape = (config.n_layers, config.d_model, config.n_heads, config.ff_dim)
    for size in PUBLISHED.values():
        if shape == (size.model.n_layers, size.model.d_model, size.model.n_heads, size.model.ff_dim):
            return size.max_context
    return DEFAULT_MAX_CONTEXT


def _version(source: _Source, digest: str) -> str:
    return f"{source.name}@{source.revision}+{digest[:VERSION_HEX_DIGITS]}"
