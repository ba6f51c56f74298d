"""What a store of jobs keeps, and what it promises.

Knows: the nouns of the job queue and the promises every store makes. Does not know: any database, HTTP, the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

from app.jobs.targets import origin
from app.scheduler import Priority

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
Ending = Literal["succeeded", "failed", "cancelled", "expired"]
Word = Literal["go on", "cancel", "lost"]
Endpoint = Literal["single", "batch", "embeddings"]

STATES: Final[tuple[State, ...]] = get_args(State)
ENDED: Final[tuple[Ending, ...]] = get_args(Ending)
WAITING: Final[tuple[State, ...]] = ("queued", "running")


class StoreFailed(Exception):
    """The store did not do what it was asked: away, locked, full. Whether it was done is not known."""


class QueueFull(Exception):
    """As many jobs wait, or as many bytes are kept, as the limits allow."""


class KeyReused(Exception):
    """This owner used the same idempotency key for another request."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store takes, and how long a claim holds."""

    visibility: float = 15.0
    """Seconds after its claim or last heartbeat for which a running job is nobody else's."""
    max_waiting: int = 10_000
    """Jobs that may be queued at once."""
    max_bytes: int = 2**30
    """Bytes of requests and results that may be kept when another job is taken in."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted. Its request was checked already."""

    id: str
    owner: str
    """Who may read it: a hash of the key it came with; "" for nobody in particular."""
    endpoint: Endpoint
    body: bytes
    """The request, byte for byte."""
    priority: Priority
    steps: int
    """Sample paths × steps that it will take."""
    ttl: float
    """Seconds to its end, and then again seconds for which the result is kept."""
    request_id: str
    webhook: str | None = None
    idempotency_key: str | None = None

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that are the same for the same request."""
        return hashlib.sha256(self.endpoint.encode() + b"\0" + self.body).digest()

    @property
    def receiver(self) -> str | None:
        """Whom the webhook goes to: scheme, host and port, the same for all URLs there."""
        return None if self.webhook is None else str(origin(self.webhook))


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. Times are seconds since 1970, by the store's clock."""

    id: str
    owner: str
    endpoint: Endpoint
    state: State
    priority: Priority
    request_id: str
    steps: int
    steps_done: int
    """Of the attempt that runs, as of its last heartbeat."""
    attempts: int
    """Times that a worker took it up, those given back in order not counted."""
    cancelling: bool
    """It runs, and its worker is to stop it."""
    created: float
    started: float | None
    """When the last attempt began."""
    ended: float | None
    expires: float
    """A waiting job ends ``expired`` then; one that has ended is forgotten then."""
    webhook: str | None
    result: bytes | None
    """The JSON document of the answer (``succeeded``) or of the problem (``failed``); None or empty otherwise."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is this worker's to run, as long as ``token`` is the job's."""

    id: str
    token: str
    endpoint: Endpoint
    body: bytes
    priority: Priority
    request_id: str
    steps: int
    attempt: int
    """1 for the first; above the most attempts allowed, it is to be ended and not run."""
    created: float
    remaining: float
    """Seconds until it expires."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of one running job."""

    id: str
    token: str
    steps_done: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook to be called: its job has ended, and nobody has told its owner yet."""

    id: str
    """Of the job."""
    url: str
    tries: int
    """1 for the first."""
    receiver: str
    """``NewJob.receiver``."""


@dataclass(frozen=True, slots=True)
class Counts:
    """For the metrics."""

    by_state: Mapping[State, int]
    oldest_queued_s: float
    """For how long the oldest queued job has waited; 0: none has."""
    deliveries: int
    """Webhooks that are still to be called."""


class Store(Protocol):
    """A durable queue of jobs, shared by the workers of a fleet.

    Each method is atomic and may be called by many workers at once; each raises StoreFailed when the store is away. All
    clocks are the store's own. A job is queued → running → ended; running → queued when it is released or its claim has
    run out. An end is final. Whoever holds no current claim changes nothing but by ``cancel``.
    """

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Keep a job; when this returns it outlives every process. The second value: True, it is new.

        The same owner, idempotency key and fingerprint as a job that is kept: that job, False, also when the queue is
        full. Raises KeyReused (another fingerprint), QueueFull.
        """

    async def claim(self, most: int) -> list[Claim]:
        """Take up to ``most`` jobs: interactive before bulk, then the oldest submission first.

        Free are queued jobs, and running ones whose claim has run out and whose cancellation nobody wants; not those
        that have expired. Each gets a new token, one more attempt, and steps done 0.
        """

    async def heartbeat(self, beats: Sequence[Beat]) -> dict[str, Word]:
        """Extend claims by the visibility and note their progress: a word for each id.

        ``cancel``: stop, then ``finish`` as cancelled (the claim was extended). ``lost``: the token is not the job's any
        more, or it has ended; nothing was changed.
        """

    async def finish(self, id: str, token: str, state: Ending, result: bytes) -> bool:
        """End a running job. False, and nothing changed, when ``token`` is not the job's any more."""

    async def release(self, id: str, token: str) -> bool:
        """Give a running job back in its old place, this attempt not counted. False as above.

        One that is to be cancelled becomes ``cancelled`` instead.
        """

    async def cancel(self, id: str) -> Job | None:
        """Queued: ``cancelled`` at once. Running: its worker hears of it. Ended: as it was. None: no such job."""

    async def get(self, id: str) -> Job | None:
        """The job, with its result. One that is to be forgotten by now is None; one that has expired may still wait."""

    async def position(self, id: str) -> int | None:
        """How many queued jobs come before this one; None unless it is queued."""

    async def ended(self, ids: Iterable[str]) -> set[str]:
        """Those of ``ids`` that do not wait any more (ended, or unknown)."""

    async def sweep(self) -> list[Job]:
        """Do what is due: waiting jobs whose time has passed become ``expired``, abandoned ones that were to be cancelled
        ``cancelled``, ended ones whose time has passed are forgotten. The jobs that ended by this call, without result."""

    async def counts(self) -> Counts:
        """For the metrics."""

    async def claim_delivery(self, hold: float, full: Collection[str] = ()) -> Delivery | None:
        """Take the webhook that has been due for longest, but of no receiver in ``full``; None: there is none.

        It is taken for ``hold`` seconds and with one more try: due again then, unless settled. One becomes due when a job
        with a ``webhook`` ends, in the same transaction; it is forgotten with its job. How many are due at one receiver
        makes no difference to the cost.
        """

    async def settle_delivery(self, id: str, tries: int, again_in: float | None) -> bool:
        """A webhook was delivered or given up (None), or is due again in so many seconds. False, and nothing changed, when
        it was taken again since (``tries`` is not the delivery's any more)."""

    async def close(self) -> None:
        """Let go of the database."""
