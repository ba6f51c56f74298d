"""How an outcome is written for other workers: a header of fixed length, then raw float32, little endian.

The header repeats the key, so that a value under the wrong key, an old format or half a value is no answer, whatever
brought it there. Reading runs no code and takes no more memory than the value.
Knows: bytes. Does not know: where they are kept.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np

from app.cache_store import KEY_BYTES
from app.work import Float32, Outcome

FORMAT: Final = 1
"""Raise it when the header or the meaning of the numbers changes."""
HEADER: Final = struct.Struct(f"<2sB?{KEY_BYTES}s3I")
MAGIC: Final = b"KF"
NUMBER: Final = np.dtype("<f4")


def pack(key: bytes, outcome: Outcome) -> bytes:
    """The outcome of the work that ``key`` names, as bytes. An embedding has shape (0, 0, d). Stages are not kept."""
    if outcome.paths is not None:
        shape, numbers = outcome.paths.shape, outcome.paths
    elif outcome.embedding is not None:
        shape, numbers = (0, 0, len(outcome.embedding)), outcome.embedding
    else:
        raise ValueError("an outcome without numbers")
    return HEADER.pack(MAGIC, FORMAT, outcome.rolled, key, *shape) + numbers.astype(NUMBER, copy=False).tobytes()


def unpack(key: bytes, value: bytes) -> Outcome | None:
    """The outcome that ``pack`` wrote; None for anything else."""
    if len(value) < HEADER.size:
        return None
    magic, version, rolled, named, *shape = HEADER.unpack_from(value)
    paths, steps, width = shape
    embeds = paths == steps == 0
    if (magic, version, named) != (MAGIC, FORMAT, key) or not width or not (embeds or (paths and steps)):
        return None
    if len(value) - HEADER.size != NUMBER.itemsize * (width if embeds else math.prod(shape)):
        return None
    numbers: Float32 = np.frombuffer(value, NUMBER, offset=HEADER.size).astype(np.float32, copy=False)
    return Outcome(None, numbers, {}, rolled) if embeds else Outcome(numbers.reshape(shape), None, {}, rolled)
