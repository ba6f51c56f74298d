"""Builds and loads the CPU kernel: one C++ file, compiled once for this processor's instruction set.

Knows compilers and processors, not what the kernel computes. `python -m app.model.native.build [ISA …]`
builds ahead of time, for instance into an image that has no compiler at run time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernel.cpp"
LIBRARIES = FOLDER / "lib"
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("g++", "clang++", "c++")
# Names of -march, best first, with the flags of /proc/cpuinfo that each needs.
ISAS = {
    "sapphirerapids": {"amx_bf16", "amx_tile", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx512vl"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
}


class KernelUnavailable(RuntimeError):
    """No kernel can be had on this machine; the message says what is missing."""


def processor_flags() -> set[str]:
    """The feature flags of /proc/cpuinfo; empty where there are none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    return set(line.split(":", 1)[1].split())


def best_isa() -> str:
    """The best instruction set this processor has. Raises KernelUnavailable if none is supported."""
    flags = processor_flags()
    for isa, needed in ISAS.items():
        if needed <= flags:
            return isa
    raise KernelUnavailable(f"no supported instruction set on this {platform.machine()} processor (needs AVX2)")


def library_path(isa: str) -> Path:
    """Where the kernel for an instruction set lies: the name carries the hash of sources and flags."""
    sources = b"".join(path.read_bytes() for path in (SOURCE, *sorted(FOLDER.glob("*.h"))))
    digest = hashlib.sha256(sources + " ".join(FLAGS).encode()).hexdigest()[:12]
    return LIBRARIES / f"kernel-{isa}-{digest}.so"


def build(isa: str) -> Path:
    """Compile the kernel unless it is there. Raises KernelUnavailable without a compiler or when it fails."""
    target = library_path(isa)
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelUnavailable("no C++ compiler on PATH: install g++ or clang++, or set CXX")
    try:
        _compile(compiler, isa, target)
    except OSError as error:
        raise KernelUnavailable(f"cannot build {target} with {compiler}: {error}") from error
    return target


def _compile(compiler: str, isa: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    partial = Path(name)
    try:
        command = [compiler, *FLAGS, f"-march={isa}", str(SOURCE), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelUnavailable(f"{compiler} failed:\n{done.stderr.strip()}")
        partial.chmod(0o644)
        partial.replace(target)  # atomic: workers that start together may build together
    finally:
        partial.unlink(missing_ok=True)


@functools.cache
def load(isa: str | None = None) -> ctypes.CDLL:
    """The kernel as a library, built if need be. Raises KernelUnavailable."""
    return ctypes.CDLL(str(build(isa or best_isa())))


if __name__ == "__main__":
    try:
        for wanted in sys.argv[1:] or [best_isa()]:
            print(f"kernel ready: {build(wanted).name}")
    except KernelUnavailable as unavailable:
        sys.exit(f"no CPU kernel: {unavailable}")
