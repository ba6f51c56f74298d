"""What a queue is made of, and what came of it.

Knows: the nouns. Does not know: time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """What is simulated.

    ``speeds[k]`` is the speed of each of k busy workers, relative to one alone (index 0 is not used). A worker runs up to
    ``slots`` requests at once, each at ``1 / (1 + batch_cost · (b − 1))`` of its speed when b run. A request is refused after
    ``refusal_s`` when the chosen worker holds ``queue_limit`` requests (None: never). ``overhead_s`` is added to each latency
    and costs no worker anything. The generator has at most ``max_in_flight`` requests under way and sends at most ``max_rate``
    requests a second (None: no limit); an open arrival that it cannot send is dropped.
    """

    speeds: tuple[float, ...]
    slots: int = 1
    batch_cost: float = 0.0
    queue_limit: int | None = None
    refusal_s: float = 0.01
    overhead_s: float = 0.0
    max_in_flight: int | None = None
    max_rate: float | None = None

    @property
    def workers(self) -> int:
        return len(self.speeds) - 1


@dataclass(frozen=True)
class Trace:
    """What came of it: per request that was sent, in the order of sending. Times in seconds.

    ``busy_s[k]`` is for how long k workers were busy.
    """

    due: Floats
    latency: Floats
    ok: npt.NDArray[np.bool_]
    worker: npt.NDArray[np.int64]
    dropped: int
    busy_s: Floats
