"""Chooses the runner for a device: the C++ kernel on CPUs, torch on CUDA and where no kernel can be built."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from app import memory
from app.model.native.build import KernelUnavailable, best_isa, library_path
from app.model.native.runner import NativeRunner
from app.model.weights import NO_TORCH, Checkpoint
from app.work import Runner

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

log = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/dev/nvidiactl")


class RunnerUnavailable(ValueError):
    """Nothing here can run the checkpoint; the message says what is missing and what to do."""


def build_runner(checkpoint: Checkpoint, *, num_slots: int, device: Device = "auto", dtype: Dtype = "float32") -> Runner:
    """Fold and pack a checkpoint for a device; `auto` is CUDA where there is one.

    `dtype` is the storage type of matrices and cache. Raises RunnerUnavailable for CUDA without a GPU, without torch
    where torch is needed, and where the cache would not fit into memory.
    """
    if device != "cpu" and NVIDIA_DRIVER.exists():
        return _torch_runner(checkpoint, num_slots, "cuda", dtype)
    if device == "cuda":
        raise RunnerUnavailable("KRONOS_DEVICE=cuda, but there is no NVIDIA driver here: use auto or cpu")
    try:
        runner = NativeRunner(checkpoint, num_slots=num_slots, dtype=dtype)
    except KernelUnavailable as error:
        log.warning("no CPU kernel, falling back to torch (several times slower): %s", error)
        return _torch_runner(checkpoint, num_slots, "cpu", dtype)
    _check_room(runner.cache_bytes, num_slots)
    return runner


def build_of(runner: Runner) -> str:
    """What decides the last bits of a result besides the checkpoint: sources, flags and instruction set of the kernel, or
    torch's version and the GPU."""
    if isinstance(runner, NativeRunner):
        return library_path(best_isa()).name
    import torch

    return f"torch {torch.__version__} {torch.cuda.get_device_name() if runner.device == 'cuda' else 'cpu'}"


def _check_room(cache_bytes: int, num_slots: int) -> None:
    """The cache is taken page by page, as requests come: find out now, not under load, that it cannot all be had."""
    room = memory.room_bytes()
    if room is not None and room < cache_bytes:
        raise RunnerUnavailable(
            f"the cache of {num_slots} slots can grow to {cache_bytes / 1e6:.0f} MB and {room / 1e6:.0f} MB are left: "
            "give this worker more memory, or set a smaller KRONOS_SLOTS or KRONOS_MAX_CONTEXT"
        )


def _torch_runner(checkpoint: Checkpoint, num_slots: int, device: str, dtype: Dtype) -> Runner:
    try:
        import torch  # here, so that a worker with the CPU kernel never pays for it (300 MB, seconds)
    except ModuleNotFoundError as error:
        raise RunnerUnavailable(NO_TORCH) from error

    from app.model.torch_runner import TorchRunner

    return TorchRunner(checkpoint, num_slots=num_slots, device=torch.device(device), dtype=dtype)
