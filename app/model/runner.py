"""Chooses the runner for a device: the C++ kernel on CPUs, torch on CUDA and where no kernel can be built."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from app.model.native.build import KernelUnavailable
from app.model.native.runner import NativeRunner
from app.model.weights import Checkpoint
from app.work import Runner

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

log = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/dev/nvidiactl")


def build_runner(checkpoint: Checkpoint, *, num_slots: int, device: Device = "auto", dtype: Dtype = "float32") -> Runner:
    """Fold and pack a checkpoint for a device; `auto` is CUDA where there is one.

    `dtype` is the storage type of matrices and cache. Raises RuntimeError for CUDA without a GPU.
    """
    if device != "cpu" and NVIDIA_DRIVER.exists():
        return _torch_runner(checkpoint, num_slots, "cuda", dtype)
    if device == "cuda":
        raise RuntimeError("KRONOS_DEVICE=cuda, but there is no NVIDIA driver here: use auto or cpu")
    try:
        return NativeRunner(checkpoint, num_slots=num_slots, dtype=dtype)
    except KernelUnavailable as error:
        log.warning("no CPU kernel, falling back to torch (several times slower): %s", error)
        return _torch_runner(checkpoint, num_slots, "cpu", dtype)


def _torch_runner(checkpoint: Checkpoint, num_slots: int, device: str, dtype: Dtype) -> Runner:
    import torch  # here, so that a worker with the CPU kernel never pays for it (300 MB, seconds)

    from app.model.torch_runner import TorchRunner

    return TorchRunner(checkpoint, num_slots=num_slots, device=torch.device(device), dtype=dtype)
