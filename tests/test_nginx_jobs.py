"""nginx.conf towards jobs: what is sent twice, what is not, and that their troubles are not those of predictions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.host import Answer
from tests.fleet.live import ask
from tests.nginx_rig import PREDICT, Rig, rig
from tests.scripted_workers import Asked, answer

JOBS = "/v1/jobs"
KEY = {"Idempotency-Key": "order-7"}


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path / "nginx", count=4) as found:
        yield found


def post(front: Rig, headers: dict[str, str] | None = None, path: str = JOBS) -> Answer:
    return ask(front.port, "POST", path, b'{"candles":[]}', headers or {})


async def dies(asked: Asked) -> bytes | None:
    """Takes the request and breaks the connection."""
    await asyncio.sleep(0.02)
    return None


@pytest.mark.parametrize("headers, tries", [({}, 1), ({"Idempotency-Key": ""}, 1), (KEY, 3)])
def test_a_submission_is_sent_again_only_with_a_key(front: Rig, headers: dict[str, str], tries: int) -> None:
    """Nobody knows what a worker did before it died: without a key a second try could make a second job."""
    front.workers.behave = dies
    assert post(front, headers).status == 502
    assert len({asked.worker for asked in front.workers.asked}) == len(front.workers.asked) == tries


def test_the_second_try_is_the_same_request(front: Rig) -> None:
    """Body, path, query and key arrive whole; the client sees one answer, and the log one line with both tries."""

    async def only_the_second(asked: Asked) -> bytes | None:
        return None if len(front.workers.asked) == 1 else answer(202)

    front.workers.behave = only_the_second
    assert post(front, {**KEY, "X-Request-ID": "twice"}, f"{JOBS}?a=b").status == 202
    first, second = front.workers.asked
    assert first.worker != second.worker
    assert (first.path, first.body, first.headers["idempotency-key"]) == (f"{JOBS}?a=b", b'{"candles":[]}', "order-7")
    assert (second.path, second.body, second.headers["idempotency-key"]) == (first.path, first.body, "order-7")
    line = front.logged("twice")
    assert line["status"] == 202 and line["path"] == f"{JOBS}?a=b" and "," in line["upstream"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_asking_and_deleting_are_sent_again(front: Rig, method: str) -> None:
    """Twice is the same as once: a worker that dies is nobody's business."""

    async def only_the_third(asked: Asked) -> bytes | None:
        return None if len(front.workers.asked) < 3 else answer()

    front.workers.behave = only_the_third
    assert ask(front.port, method, f"{JOBS}/7?wait=20").status == 200
    assert [(asked.method, asked.path) for asked in front.workers.asked] == [(method, f"{JOBS}/7?wait=20")] * 3


OWN = "            proxy_pass http://kronos_again;\n            proxy_next_upstream error timeout invalid_header http_503;"


@pytest.mark.parametrize("protected", [True, False])
def test_a_store_that_is_away_takes_no_worker_from_predictions(tmp_path: Path, protected: bool) -> None:
    """503 for a job means its store, not its worker. Sent to the predictions' upstream, it would leave the worker out there."""
    changes = {} if protected else {OWN: OWN.replace("kronos_again", "kronos")}
    with rig(tmp_path / "nginx", count=2, changes=changes) as front:

        async def no_jobs_at_one(asked: Asked) -> bytes | None:
            refused = asked.path.startswith(JOBS) and asked.worker == 0
            await asyncio.sleep(0.01)
            return answer(503, retry_after="2") if refused else answer()

        front.workers.behave = no_jobs_at_one
        for _ in range(8):
            assert ask(front.port, "GET", f"{JOBS}/7").status == 200
        front.workers.asked.clear()
        assert {post(front, path=PREDICT).status for _ in range(8)} == {200}
        assert ({asked.worker for asked in front.workers.asked} == {0, 1}) is protected


def test_ids_of_jobs_are_not_logged(front: Rig) -> None:
    """Where there are no API keys, whoever knows an id may read the job and end it."""
    assert ask(front.port, "GET", f"{JOBS}/s3cret?wait=1", headers={"X-Request-ID": "look"}).status == 200
    assert front.logged("look")["path"] == f"{JOBS}/{{task_id}}"
    assert "s3cret" not in (front.folder / "access.log").read_text()


def test_what_looks_like_jobs_is_none(front: Rig) -> None:
    """Other paths have no second try for a key, and a prediction needs none."""
    front.workers.behave = dies
    assert post(front, KEY, "/v1/jobsite").status == 502
    assert len(front.workers.asked) == 1
