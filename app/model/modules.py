"""Checkpoints as torch modules: for training, for torch's runner, for tests. The CPU's worker never imports this.

Knows how arrays become modules that are fit for inference, how modules become files, and random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file

from app.model.config import ModelConfig, Size, TokenizerConfig
from app.model.tokenizer import Tokenizer
from app.model.transformer import Kronos
from app.model.weights import CONFIG_FILE, VERSION_HEX_DIGITS, WEIGHTS_FILE, Checkpoint, CheckpointError, Tensors

M = TypeVar("M", Tokenizer, Kronos)

RANDOM_GAIN = 1.5  # of random matrices: sharp attention, logits with a standard deviation of about 1.5


def tokenizer(config: TokenizerConfig, tensors: Tensors) -> Tokenizer:
    """A tokenizer with these weights: eval mode, no gradients."""
    return _filled(Tokenizer(config), tensors)


def model(config: ModelConfig, tensors: Tensors) -> Kronos:
    """A model with these weights: eval mode, no gradients."""
    return _filled(Kronos(config), tensors)


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
    (folder / WEIGHTS_FILE).chmod(0o644)  # the writer keeps it to its owner; other users' workers read it too
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
    tensors = [{name: tensor.numpy() for name, tensor in module.state_dict().items()} for module in modules]
    return Checkpoint(size.tokenizer, size.model, tensors[0], tensors[1], size.max_context, version, version)


def require_inference(module: torch.nn.Module) -> None:
    """Raise CheckpointError unless every part is in eval mode: dropout at random gives wrong forecasts."""
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise CheckpointError(f"{type(module).__name__} is in train mode ({training[0]}): call eval() first")


def _filled(module: M, tensors: Tensors) -> M:
    module.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, assign=True)
    _freeze(module)
    return module


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
