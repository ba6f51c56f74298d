"""The machine's ceilings on one thread, measured in the same run as whatever they are printed beside."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def name() -> str:
    """The processor, in the words of /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall seconds of a call, after one that is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def gemm_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 7) -> float:
    """Floating-point operations per second of a square matrix product (the vendor's library)."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats)


def copy_bandwidth(num_bytes: int = 128 << 20, repeats: int = 5) -> float:
    """Bytes per second of a copy too large for the caches, counting bytes read and bytes written."""
    source = torch.randn(num_bytes // 4)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), repeats)


def read_bandwidth(num_bytes: int, repeats: int = 7) -> float:
    """Bytes per second of summing an array of this size over and over: from cache, if it fits there."""
    data = torch.randn(max(num_bytes // 4, 1024))
    return data.nbytes / median_seconds(data.sum, repeats)
