"""Chooses the runner for a device: the C++ kernel on CPUs, torch on CUDA and where no kernel can be built."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from app.model.native.build import KernelUnavailable
from app.model.native.runner import NativeRunner
from app.model.torch_runner import TorchRunner
from app.model.weights import Checkpoint
from app.work import Runner

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

log = logging.getLogger(__name__)


def build_runner(checkpoint: Checkpoint, *, num_slots: int, device: Device = "auto", dtype: Dtype = "float32") -> Runner:
    """Fold and pack a checkpoint for a device; `auto` is CUDA where there is one.

    `dtype` is the storage type of matrices and cache. Raises RuntimeError for CUDA without a GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("KRONOS_DEVICE=cuda, but torch finds no GPU here: use auto or cpu")
        return TorchRunner(checkpoint, num_slots=num_slots, device=torch.device("cuda"), dtype=dtype)
    try:
        return NativeRunner(checkpoint, num_slots=num_slots, dtype=dtype)
    except KernelUnavailable as error:
        log.warning("no CPU kernel, falling back to torch (several times slower): %s", error)
        return TorchRunner(checkpoint, num_slots=num_slots, device=torch.device("cpu"), dtype=dtype)
