"""What a runner is told and what it has to say: one JSON document in, JSON lines out.

Knows: the shape of both, and when a runner misbehaved. Does not know: processes, files, statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]
Setting = float | str

SHORTEST = 0.9
"""A run that lasted less than this share of what was asked is no run."""


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run. ``open``: ``rate`` arrivals a second, ``vus`` is null. ``closed``: ``vus`` users, ``rate`` is null.

    ``settings`` are the values of a grid (threads, slots …); the field is left out when there are none.
    """

    workers: int
    mode: Literal["open", "closed"]
    rate: float | None
    vus: int | None
    duration_s: float
    seed: int
    round: int
    settings: dict[str, Setting] = msgspec.field(default_factory=dict)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)


class Cpu(msgspec.Struct, frozen=True):
    """Mean use over the run. ``worker``: of a worker's quota; ``host``: of all cores; ``generator``: of what it may use;
    ``fleet``: of all cores, by all workers together."""

    worker: Share | None = None
    host: Share | None = None
    generator: Share | None = None
    fleet: Share | None = None


class Server(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the fleet says of the run: ``throttled``: share of the periods in which a worker's CPU quota ran out; means over the
    requests of the time in the workers' queues, in the workers altogether, and outside of them; series per decode step;
    requests that the workers refused."""

    throttled: Share | None = None
    queue_s: Seconds | None = None
    occupancy: Share | None = None
    refused: int | None = None
    inside_s: Seconds | None = None
    outside_s: Seconds | None = None


class End(msgspec.Struct, frozen=True):
    """The closing line. Other fields are welcome and stay in the raw file."""

    end: Literal[True]
    duration_s: Annotated[float, msgspec.Meta(gt=0)]
    dropped: Annotated[int, msgspec.Meta(ge=0)] = 0
    cpu: Cpu = Cpu()
    server: Server = Server()


class Request(msgspec.Struct, frozen=True):
    """One request: when it was due (s since start), how long it took (s), whether the answer was right, who gave it."""

    t: Seconds
    latency_s: Seconds
    ok: bool
    worker: str | int | None = None


@dataclass(frozen=True)
class Points:
    """All requests of a run in the order in which they were due."""

    due: Floats
    latency: Floats
    ok: npt.NDArray[np.bool_]
    worker: tuple[str, ...]


class Misbehaved(Exception):
    """What the runner printed is not a run; the sentence says why."""


_LINE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REQUEST = msgspec.json.Decoder(Request)
_END = msgspec.json.Decoder(End)


def parse(lines: Iterable[bytes], asked_s: float) -> tuple[Points, End]:
    """The requests and the closing line. Raises Misbehaved."""
    requests: list[Request] = []
    end: End | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if end is not None:
            raise Misbehaved(f"line {number} comes after the closing line")
        try:
            if b'"end"' in line and "end" in _LINE.decode(line):
                end = _END.decode(line)
            else:
                requests.append(_REQUEST.decode(line))
        except msgspec.MsgspecError as error:
            raise Misbehaved(f"line {number} is not of the protocol: {error}") from None
    if end is None:
        raise Misbehaved("the closing line is missing")
    if end.duration_s < SHORTEST * asked_s:
        raise Misbehaved(f"it lasted {end.duration_s:g} s of {asked_s:g} s")
    if not requests:
        raise Misbehaved("no request was sent")
    requests.sort(key=lambda request: request.t)
    return _points(requests), end


def _points(requests: list[Request]) -> Points:
    return Points(
        np.array([request.t for request in requests]),
        np.array([request.latency_s for request in requests]),
        np.array([request.ok for request in requests], bool),
        tuple(str(request.worker) for request in requests),
    )
