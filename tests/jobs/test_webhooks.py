"""Webhooks: signed, tried again, given up at last, and never lost with a worker. Real receivers, a real store."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest

from app.errors import InvalidInput
from app.jobs import webhooks
from app.jobs.store import Delivery, Limits, NewJob, StoreFailed
from app.jobs.targets import Target, Targets
from app.jobs.webhooks import NoWebhooks, Webhooks, headers, make_webhooks
from app.pools import Pools, installed
from app.settings import Settings
from examples.webhook_receiver import is_genuine
from tests.caching import value
from tests.jobs.receivers import Receiver, receiver, silent, status
from tests.jobs.stores import Rig

OLD, NEW = "the-old-secret-of-webhooks", "the-new-secret-of-webhooks"
PATIENCE_S = 10.0
Counted = Callable[[], dict[str, float]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses of hundredths of a second."""
    monkeypatch.setattr(webhooks, "FIRST_S", 0.02)
    monkeypatch.setattr(webhooks, "LOOK_S", 0.02)
    with installed(Pools()):
        yield


@pytest.fixture
def counted() -> Counted:
    """What the metric has counted since the test began."""
    names = ("delivered", "failed", "given_up", "refused")
    before = {name: value("kronos_webhooks_total", outcome=name) for name in names}
    return lambda: {name: count for name in names if (count := value("kronos_webhooks_total", outcome=name) - before[name])}


def settings(targets: str, tries: int = 3, timeout: float = 2.0, secrets: str = OLD) -> Settings:
    return Settings(webhook_targets=targets, webhook_secrets=secrets, webhook_tries=tries, webhook_timeout=timeout)


class Jobs:
    """A store, and jobs in it that end."""

    def __init__(self, rig: Rig) -> None:
        self.store = rig.open(Limits())
        self.number = 0

    async def end(self, url: str) -> str:
        """The id of a job that has ended, whose owner is to be told at ``url``."""
        self.number += 1
        id = f"task-{self.number}"
        new = NewJob(id, "", "single", b"{}", "bulk", 4, 60.0, f"request-{self.number}", url)
        await self.store.submit(new)
        (claim,) = await self.store.claim(1)
        assert await self.store.finish(id, claim.token, "succeeded", b'{"prediction": "secret"}')
        return id

    async def settled(self) -> None:
        """Wait until nobody is to be told anything any more."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.store.counts()).deliveries:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(jobs: Jobs, how: Settings) -> AsyncIterator[Webhooks | NoWebhooks]:
    """Deliver while the block lasts."""
    made = make_webhooks(how, jobs.store)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        await made.close()


def told(rig: Rig, there: Receiver, how: Settings, path: str = "/done?x=1") -> str:
    """End a job and deliver until that is settled; its id."""

    async def tell() -> str:
        jobs = Jobs(rig)
        id = await jobs.end(there.place + path)
        async with running(jobs, how):
            await jobs.settled()
        await jobs.store.close()
        return id

    return asyncio.run(tell())


def test_the_end_of_a_job_is_told_once_and_signed(rig: Rig, counted: Counted) -> None:
    """The receiver of the examples finds it genuine; it says how the job ended, and not the result."""
    with receiver() as there:
        id = told(rig, there, settings(there.place))
    (call,) = there.calls
    assert is_genuine(call.headers, call.body, OLD)
    assert (call.path, call.headers["X-Kronos-Task"], call.headers["Content-Type"]) == ("/done?x=1", id, "application/json")
    assert call.headers["Host"] == f"127.0.0.1:{there.port}"
    document = json.loads(call.body)
    assert (document["task_id"], document["state"]) == (id, "succeeded")
    assert "result" not in document and b"secret" not in call.body
    assert counted() == {"delivered": 1}


def test_a_forged_a_changed_or_an_old_one_is_found_out() -> None:
    """The example's check is worth copying: every part of the message counts."""
    body = b'{"state": "succeeded"}'
    sent = headers("task", body, [OLD])
    assert is_genuine(sent, body, OLD)
    assert not is_genuine(sent, body, NEW)
    assert not is_genuine(sent, body.replace(b"succeeded", b"failed"), OLD)
    now = int(sent["X-Kronos-Timestamp"])
    for timestamp in (str(now - 1), str(now - 301), "", "x", "²"):
        assert not is_genuine(sent | {"X-Kronos-Timestamp": timestamp}, body, OLD)
    for signature in ("", "v1=", "v1=0", sent["X-Kronos-Signature"].removeprefix("v1="), "ä"):
        assert not is_genuine(sent | {"X-Kronos-Signature": signature}, body, OLD)
    assert not is_genuine({}, body, OLD)


def test_an_old_webhook_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that somebody kept is refused after five minutes, though its signature is right."""
    monkeypatch.setattr("time.time", lambda: 1e9)
    sent = headers("task", b"{}", [OLD])
    assert is_genuine(sent, b"{}", OLD)
    monkeypatch.setattr("time.time", lambda: 1e9 + 301)
    assert not is_genuine(sent, b"{}", OLD)


def test_while_secrets_are_changed_receivers_may_know_either(rig: Rig) -> None:
    """Both sign; a third one does not."""
    with receiver() as there:
        told(rig, there, settings(there.place, secrets=f"{NEW}, {OLD}"))
    (call,) = there.calls
    assert is_genuine(call.headers, call.body, OLD) and is_genuine(call.headers, call.body, NEW)
    assert not is_genuine(call.headers, call.body, OLD + NEW)


def test_it_is_tried_again_until_it_is_taken(rig: Rig, counted: Counted) -> None:
    """After errors of the receiver, each time signed anew."""
    with receiver(status(500, 404, 204)) as there:
        told(rig, there, settings(there.place))
    assert len(there.calls) == 3 and all(is_genuine(call.headers, call.body, OLD) for call in there.calls)
    assert counted() == {"failed": 2, "delivered": 1}


def test_it_is_given_up_at_last(rig: Rig, counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    """After as many tries as the setting says, with a line in the log that names the receiver and not its path."""
    with caplog.at_level(logging.INFO), receiver(status(500)) as there:
        told(rig, there, settings(there.place, tries=4), "/token-in-the-path")
    assert len(there.calls) == 4
    assert counted() == {"failed": 3, "given_up": 1}
    lines = [record.getMessage() for record in caplog.records if record.name == webhooks.__name__]
    assert lines[-1] == "webhook given up: 127.0.0.1: 500" and len(lines) == 4
    assert not any("token-in-the-path" in line for line in lines)


def test_pauses_grow_and_differ() -> None:
    """Twice as long each time, up to a bound, and never the same for all who wait."""
    made = Webhooks(None, Targets("a"), None, [OLD], settings("a", tries=20))  # type: ignore[arg-type]
    for tries in range(1, 20):
        longest = min(webhooks.FIRST_S * 2 ** (tries - 1), webhooks.LAST_S)
        pauses = {made._again(tries, "").again_in or 0 for _ in range(50)}
        assert len(pauses) > 40 and longest / 2 <= min(pauses) and max(pauses) <= longest
    assert made._again(20, "").again_in is None


def test_a_redirect_is_not_followed(rig: Rig, counted: Counted) -> None:
    """Not even to a listed target: it is an answer like any other that is not 2xx."""
    with receiver() as elsewhere, receiver(status(307, Location=f"http://127.0.0.1:{elsewhere.port}/")) as there:
        told(rig, there, settings(f"{there.place} {elsewhere.place}"))
    assert (len(there.calls), len(elsewhere.calls)) == (3, 0)
    assert counted() == {"failed": 2, "given_up": 1}


@pytest.mark.parametrize("network", ["", "127.0.0.0/8 ::1/128"], ids=["not listed", "listed"])
def test_a_name_that_leads_inside_is_refused(rig: Rig, counted: Counted, network: str) -> None:
    """A listed name is not enough when its address is private; the control: with its network listed it is called."""

    async def tell(there: Receiver) -> None:
        jobs = Jobs(rig)
        await jobs.end(f"http://localhost:{there.port}/")
        async with running(jobs, settings(f"http://localhost:{there.port} {network}")):
            await jobs.settled()
        await jobs.store.close()

    with receiver() as there:
        asyncio.run(tell(there))
    assert (len(there.calls), counted()) == ((1, {"delivered": 1}) if network else (0, {"refused": 1}))


def test_a_target_that_is_not_listed_any_more_is_refused(rig: Rig, counted: Counted) -> None:
    """The list of today counts, not that of the day of the submission."""
    with receiver() as there:
        told(rig, there, settings("hooks.example.com 127.0.0.0/8"))
    assert (there.calls, counted()) == ([], {"refused": 1})


def test_what_is_refused_at_submission() -> None:
    """Whatever is not listed; everything, where nothing is listed. The error names the member."""
    made = Webhooks(None, Targets("hooks.example.com"), None, [OLD], settings("a"))  # type: ignore[arg-type]
    made.check("https://hooks.example.com/a")
    nobody = make_webhooks(Settings(), None)  # type: ignore[arg-type]
    for asked, url in ((made, "https://evil.com/"), (nobody, "https://hooks.example.com/a")):
        with pytest.raises(InvalidInput) as caught:
            asked.check(url)
        assert [error.pointer for error in caught.value.errors] == ["/webhook"]


def test_a_slow_receiver_does_not_hold_up_another(rig: Rig) -> None:
    """Calls run beside each other, and the slow one has few of them."""

    async def tell(slow: Receiver, there: Receiver) -> None:
        jobs = Jobs(rig)
        for _ in range(2 * webhooks.LANES):
            await jobs.end(slow.place)
        await jobs.end(there.place)
        async with running(jobs, settings(f"{slow.place} {there.place}", timeout=5.0)), asyncio.timeout(3):
            while not there.calls:
                await asyncio.sleep(0.01)
        await jobs.store.close()

    with receiver(silent(4)) as slow, receiver() as there:
        asyncio.run(tell(slow, there))


def test_a_receiver_that_hangs_has_its_share_of_the_calls_and_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many webhooks it was due before the others: these are called while its first calls go on, which never end."""
    under_way, most = Counter[str](), Counter[str]()

    class HangsAtOne:
        def __init__(self, *_: object) -> None: ...

        async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> int:
            host = target.origin.host
            under_way[host] += 1
            most[host] = max(most[host], under_way[host])
            try:
                await asyncio.sleep(3600.0 if host == "dead" else 0.0)
            finally:
                under_way[host] -= 1
            return 204

        async def close(self) -> None: ...

    async def tell() -> None:
        jobs = Jobs(rig)
        for host in ["dead"] * 50 + ["alive", "well"] * 5:
            await jobs.end(f"https://{host}/{jobs.number}")
        async with running(jobs, settings("dead alive well")), asyncio.timeout(PATIENCE_S):
            while (await jobs.store.counts()).deliveries > 50:
                await asyncio.sleep(0.01)
        await jobs.store.close()

    monkeypatch.setattr("app.jobs.post.HttpPoster", HangsAtOne)
    asyncio.run(tell())
    assert max(most.values()) == most["dead"] == webhooks.LANES_EACH


def test_a_webhook_survives_the_worker_that_was_to_send_it(rig: Rig) -> None:
    """Taken by a worker that dies, it is nobody else's for a while, then another's."""

    async def tell(there: Receiver) -> None:
        jobs = Jobs(rig)
        await jobs.end(there.place)
        assert await jobs.store.claim_delivery(30.0)  # by a worker that is never heard of again
        async with running(jobs, settings(there.place)):
            await asyncio.sleep(0.3)
            assert there.calls == []
            rig.advance(31.0)
            await jobs.settled()
        await jobs.store.close()

    with receiver() as there:
        asyncio.run(tell(there))
    assert len(there.calls) == 1


def test_leaving_breaks_off_and_another_goes_on(rig: Rig) -> None:
    """A worker that drains does not wait for a slow receiver; the webhook is not lost."""

    async def tell(there: Receiver) -> None:
        jobs = Jobs(rig)
        await jobs.end(there.place)
        async with running(jobs, settings(there.place, timeout=5.0)):
            while not there.calls:
                await asyncio.sleep(0.01)
            began = time.monotonic()
        assert time.monotonic() - began < 4  # the receiver has five
        assert (await jobs.store.counts()).deliveries == 1
        rig.advance(20.0)
        async with running(jobs, settings(there.place)):
            await jobs.settled()
        await jobs.store.close()

    def first_hangs(handler: object, number: int) -> None:
        (silent(3) if number == 1 else status(204))(handler, number)  # type: ignore[arg-type]

    with receiver(first_hangs) as there:
        asyncio.run(tell(there))
    assert len(there.calls) == 2


def test_a_store_that_is_away_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries go on when it is back."""

    async def tell(there: Receiver) -> None:
        jobs = Jobs(rig)
        await jobs.end(there.place)
        ask = jobs.store.claim_delivery
        failures = iter([StoreFailed("away")] * 5)

        async def flaky(hold: float, full: list[str]) -> Delivery | None:
            for failure in failures:
                raise failure
            return await ask(hold, full)

        monkeypatch.setattr(jobs.store, "claim_delivery", flaky)
        async with running(jobs, settings(there.place)):
            await jobs.settled()
        await jobs.store.close()

    with receiver() as there:
        asyncio.run(tell(there))
    assert len(there.calls) == 1


def test_its_client_is_loaded_only_where_somebody_is_called() -> None:
    """A worker without webhooks does not pay for them; the control: with a target it is there."""
    code = (
        "import sys; from app.jobs.webhooks import make_webhooks; from app.settings import load; "
        "make_webhooks(load(dict(given.split('=', 1) for given in sys.argv[1:])), None); print('httpcore2' in sys.modules)"
    )
    for given, there in (([], "False"), (["KRONOS_WEBHOOK_TARGETS=a", f"KRONOS_WEBHOOK_SECRETS={OLD}"], "True")):
        done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == there
