"""Random numbers that belong to one sample path alone. Knows seeds, not what is drawn with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWS_PER_STEP = 2  # one for s1, one for s2


def uniforms(seed: int, path: int, steps: int) -> NDArray[np.float64]:
    """Random numbers of one sample path: float64 [steps, 2] in [0, 1), column 0 for s1 and column 1 for s2.

    Philox (Salmon et al. 2011) keyed by (seed, path), 0 ≤ each < 2^64: a longer horizon starts with the
    same numbers, and nothing else in flight changes them. Raises ValueError outside those bounds.
    """
    if not (0 <= seed < 2**64 and 0 <= path < 2**64):
        raise ValueError(f"seed and path must be in [0, 2^64), got {seed} and {path}")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, path], dtype=np.uint64)))
    return generator.random((steps, DRAWS_PER_STEP))
