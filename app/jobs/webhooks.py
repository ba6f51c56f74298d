"""Telling the owner of a job that it has ended: a signed POST, tried again until it is taken.

What is still to be told is in the job store, and any worker may tell it: a worker that dies while it does so is followed
by another. So a receiver may be told more than once, never of another job's end. It is told how the job ended, not the
result, which it fetches with its key: a webhook is small, and says nothing to who must not know.
Knows: when to call, how often, what to sign. Does not know: databases, DNS, HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from app import metrics
from app.errors import InvalidInput
from app.jobs.document import document
from app.jobs.store import Delivery, Store, StoreFailed
from app.jobs.targets import Target, Targets
from app.logs import context
from app.settings import Settings

LANES: Final = 8
"""Calls at a time of one worker; what is due beyond stays in the store."""
LANES_EACH: Final = 2
"""Of these to one receiver: when it hangs, the rest are for the others."""
LOOK_S: Final = 1.0
"""Pause between looks for what has become due."""
SPARE_S: Final = 5.0
"""Beyond the time of a call, for which nobody else makes the same one."""
FIRST_S, LAST_S = 5.0, 600.0
"""Pauses before a call is tried again: each twice as long as the one before."""
OUTCOMES: Final = ("delivered", "failed", "given_up", "refused")
TASK, TIMESTAMP, SIGNATURE = "X-Kronos-Task", "X-Kronos-Timestamp", "X-Kronos-Signature"

log = logging.getLogger(__name__)


class Forbidden(Exception):
    """A target whose name leads to an address that is neither public nor listed."""


class Unreachable(Exception):
    """No answer in time, or none that is HTTP."""


class Poster(Protocol):
    """Posts a document."""

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer. Raises Forbidden or Unreachable."""

    async def close(self) -> None:
        """Let go of connections."""


class Tried(NamedTuple):
    """What came of one call: the label of the metric, why, and in how many seconds to try again (None: no more)."""

    outcome: str
    why: str = ""
    again_in: float | None = None


class Webhooks:
    """Delivers from one store. Belongs to one event loop."""

    def __init__(self, store: Store, targets: Targets, poster: Poster, secrets: Sequence[str], settings: Settings) -> None:
        self._store = store
        self._targets = targets
        self._poster = poster
        self._secrets = secrets
        self._most_tries = settings.webhook_tries
        self._hold_s = settings.webhook_timeout + SPARE_S
        self._calls: dict[asyncio.Task[None], str] = {}  # to which receiver each is
        self._woken = asyncio.Event()
        for outcome in OUTCOMES:
            metrics.WEBHOOKS.labels(outcome)  # there from the start, at 0: an alert sees the first one

    def check(self, url: str) -> None:
        """Raise InvalidInput unless ``url`` may be called."""
        try:
            self._targets.read(url)
        except ValueError as error:
            raise InvalidInput([("/webhook", str(error))]) from error

    def wake(self) -> None:
        """A job has ended: look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver what is due, until cancelled."""
        while True:
            self._woken.clear()
            while len(self._calls) < LANES and (delivery := await self._take()):
                call = asyncio.get_running_loop().create_task(self._deliver(delivery))
                self._calls[call] = delivery.receiver
                call.add_done_callback(self._free)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Break off what is under way, for others to do, and disconnect."""
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        await self._poster.close()

    def _free(self, call: asyncio.Task[None]) -> None:
        del self._calls[call]
        self._woken.set()

    async def _take(self) -> Delivery | None:
        full = [receiver for receiver, calls in Counter(self._calls.values()).items() if calls >= LANES_EACH]
        try:
            return await self._store.claim_delivery(self._hold_s, full)
        except StoreFailed:
            return None  # whoever runs jobs has said it already

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            job = await self._store.get(delivery.id)
            tried = await self._try(delivery, document(job, result=False)) if job else Tried("given_up", "the job is forgotten")
            metrics.WEBHOOKS.labels(tried.outcome).inc()
            if tried.outcome != "delivered":
                level = logging.INFO if tried.again_in else logging.WARNING
                facts = context(request_id=job.request_id if job else "", tries=delivery.tries)
                log.log(level, "webhook %s: %s", tried.outcome.replace("_", " "), tried.why, **facts)
            await self._store.settle_delivery(delivery.id, delivery.tries, tried.again_in)
        except StoreFailed as error:
            log.info("webhook: %s; it will be called again", error)

    async def _try(self, delivery: Delivery, body: bytes) -> Tried:
        try:
            target = self._targets.read(delivery.url)
            status = await self._poster.post(target, headers(delivery.id, body, self._secrets), body)
        except (ValueError, Forbidden) as error:
            return Tried("refused", str(error))
        except Unreachable as error:
            return self._again(delivery.tries, f"{target.origin.host}: {error}")
        return Tried("delivered") if 200 <= status < 300 else self._again(delivery.tries, f"{target.origin.host}: {status}")

    def _again(self, tries: int, why: str) -> Tried:
        if tries >= self._most_tries:
            return Tried("given_up", why)
        pause = min(FIRST_S * 2 ** (tries - 1), LAST_S)
        return Tried("failed", why, pause * random.uniform(0.5, 1))  # spread: who was away is not met by all at once


class NoWebhooks:
    """Where no targets are listed."""

    def check(self, url: str) -> None:
        """Raise InvalidInput."""
        raise InvalidInput([("/webhook", "this service calls nobody (KRONOS_WEBHOOK_TARGETS is not set)")])

    def wake(self) -> None: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...


def make_webhooks(settings: Settings, store: Store) -> Webhooks | NoWebhooks:
    """As the settings want it."""
    if not settings.webhook_targets:
        return NoWebhooks()
    from app.jobs.post import HttpPoster  # its client is loaded only where there is somebody to call

    targets = Targets(settings.webhook_targets)
    poster = HttpPoster(targets, settings.webhook_timeout, LANES)
    return Webhooks(store, targets, poster, split(settings.webhook_secrets or ""), settings)


def headers(id: str, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a webhook that is sent now.

    The signature is ``v1=`` and the hex HMAC-SHA256 of ``TIMESTAMP.BODY``, once for each secret: while secrets are
    changed, receivers may know either.
    """
    timestamp = str(int(time.time()))
    signed = timestamp.encode() + b"." + body
    signatures = (hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets)
    return {
        "Content-Type": "application/json",
        "User-Agent": "kronos-fleet",
        TASK: id,
        TIMESTAMP: timestamp,
        SIGNATURE: ",".join(f"v1={signature}" for signature in signatures),
    }


def split(text: str) -> list[str]:
    """The entries of a setting that holds several, with commas or blanks between them."""
    return [entry for entry in re.split(r"[\s,]+", text) if entry]
