"""The container fleet's order of things, on a scripted engine with a fake clock."""

from __future__ import annotations

import argparse
import io
import os
import signal
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import cast

import pytest

from fleet.compose.change import Change, dispensable
from fleet.errors import BadSetting, BuildFailed, EngineFailed, RollHalted, WorkerFailed
from fleet.host import CommandFailed, Env
from tests.fleet.docker import NEVER, OPTIONS, RUN, Docker, Life, document, engine, runtime

TORN = Life(healthy_after=NEVER, ends_after=2, says='{"level":"error","message":"the weights are torn"}\nWorker exiting\n')
SLOW = Life(healthy_after=NEVER, says="slow")
UNHEALTHY = Life(healthy_after=NEVER, unhealthy_after=9, says="still loading")


def change(docker: Docker) -> Change:
    return Change(engine(docker), startup_s=120, grace_s=45)


def up(docker: Docker, workers: int = 2) -> Change:
    """So many workers, the journal of their start forgotten."""
    at = change(docker)
    at.converge(workers)
    docker.journal.clear()
    return at


def names(docker: Docker) -> list[str]:
    return [box.name.removeprefix("kronos-") for box in docker.workers]


def test_growing_starts_what_is_missing_and_nothing_else() -> None:
    """Until they are healthy; nobody else is touched."""
    docker = Docker({3: Life(healthy_after=40)})
    up(docker).converge(4)
    assert docker.journal == ["start worker-3", "start worker-4"] and docker.clock > 40


@pytest.mark.parametrize(
    "life, words",
    [
        (TORN, "ended before it was ready: the weights are torn"),
        (UNHEALTHY, "is unhealthy: still"),
        (SLOW, "was not ready after 150 s: slow"),
    ],
)
def test_a_worker_that_does_not_serve_takes_all_new_ones_with_it(life: Life, words: str) -> None:
    """The reason from its log, which is kept; those from before serve on."""
    docker = Docker({4: life})
    at = up(docker)
    with pytest.raises(WorkerFailed, match=words) as caught:
        at.converge(4)
    assert names(docker) == ["worker-1", "worker-2"]
    assert life.says in docker.files[RUN / "logs" / "worker-4.log"] and "logs/worker-4.log" in caught.value.then


def test_shrinking_stops_first_what_does_not_serve() -> None:
    """Then the highest numbers; each gets its grace before it is removed."""
    docker = Docker()
    at = up(docker, 4)
    docker.workers[1].status = "paused"
    at.converge(2)
    assert docker.journal == ["stop worker-2", "rm worker-2", "stop worker-4", "rm worker-4"]


def test_what_has_ended_is_not_counted() -> None:
    """``docker compose up`` would start it again as it is, with whatever settings it had."""
    docker = Docker({2: Life(ends_after=60)})
    at = up(docker, 2)
    docker.clock, docker.lives = 100, {}
    at.converge(2)
    assert docker.journal == ["rm worker-2", "start worker-2"]


def test_a_roll_is_start_first_and_one_at_a_time() -> None:
    """Start, healthy, time for nginx to find it, and only then SIGTERM for the old one."""
    docker = Docker()
    at = up(docker)
    began, stopped = docker.clock, []
    docker.when = {"stop worker-1": lambda: stopped.append(docker.clock)}
    docker.image, docker.hash = "sha256:two", "two"
    at.roll(at.engine.workers(), 2, "again")
    assert docker.journal == [
        "start worker-3", "stop worker-1", "rm worker-1", "start worker-4", "stop worker-2", "rm worker-2",
    ]  # fmt: skip
    assert stopped[0] - began >= 5 + 2 and {box.image for box in docker.workers} == {"sha256:two"}
    assert at.remembered() is None


@pytest.mark.parametrize("bad, left", [(3, ["worker-1", "worker-2"]), (4, ["worker-2", "worker-3"])])
def test_a_bad_successor_halts_the_roll(bad: int, left: list[str]) -> None:
    """It goes, the others serve on, and the sentence says how far it came."""
    docker = Docker({bad: TORN})
    at = up(docker)
    with pytest.raises(RollHalted, match="the weights are torn") as caught:
        at.roll(at.engine.workers(), 2, "python -m fleet roll")
    assert names(docker) == left and at.remembered() is None
    assert ("nothing has changed" if bad == 3 else "1 of 2 is new already") in caught.value.what
    assert caught.value.then.endswith("correct it, then: python -m fleet roll")


def test_ctrl_c_takes_the_successor_away() -> None:
    """Interrupted while it starts: the fleet is the one from before."""
    docker = Docker()
    at = up(docker)
    docker.when = {"start worker-3": lambda: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        at.roll(at.engine.workers(), 2, "")
    assert names(docker) == ["worker-1", "worker-2"]


def test_a_roll_after_a_killed_roll_leaves_as_many_as_before() -> None:
    """The successor that nobody waits for any more is not taken for one more worker."""
    docker = Docker()
    at = up(docker)
    copies: list[Docker] = []
    docker.when = {"start worker-3": lambda: copies.append(deepcopy(docker))}
    at.roll(at.engine.workers(), 2, "")
    then = copies[0]
    then.when, then.journal, then.hash = {}, [], "two"
    assert len(then.workers) == 3
    runtime(then).roll(OPTIONS)
    assert then.journal[:3] == ["build worker", "stop worker-3", "rm worker-3"]
    assert [box.hash for box in then.workers] == ["two", "two"] and RUN / "roll.json" not in then.files


def test_nobody_is_stopped_when_docker_starts_nothing() -> None:
    """A start that says it went well and left no new container is no successor."""
    docker = Docker()
    at = up(docker)
    docker.starts_nothing = True
    with pytest.raises(RollHalted, match="of 1 new workers 0 are left"):
        at.roll(at.engine.workers(), 2, "")
    assert docker.journal == [] and names(docker) == ["worker-1", "worker-2"]


def test_up_starts_workers_before_nginx() -> None:
    """No request can reach a fleet that is not ready."""
    docker = Docker()
    front = runtime(docker).up(OPTIONS)
    assert docker.journal == ["build worker", "start worker-1", "start worker-2", "up nginx"]
    assert front is not None and front.url == "http://127.0.0.1:8080" and front.workers == 2


def test_an_up_that_fails_leaves_nothing() -> None:
    """Fresh: all of it goes."""
    docker = Docker({2: TORN})
    with pytest.raises(WorkerFailed):
        runtime(docker).up(OPTIONS)
    assert docker.boxes == [] and docker.journal[-1] == "down"


def test_up_rolls_what_is_of_another_image_or_other_settings() -> None:
    """As ``docker compose up -d`` would, without its outage; what is as it should be stays."""
    docker = Docker()
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    docker.journal.clear()
    docker.workers[0].hash = "old"
    fleet.up(OPTIONS)
    assert names(docker) == ["worker-2", "worker-3"]
    assert docker.journal == ["build worker", "start worker-3", "stop worker-1", "rm worker-1", "up nginx"]
    docker.journal.clear()
    assert fleet.up(OPTIONS) is None and docker.journal == ["build worker", "up nginx"]


def test_a_failing_build_changes_nothing() -> None:
    """The builder's last words are the reason; all of them are in a file."""
    docker = Docker()
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    docker.journal.clear()
    docker.refuses = {" build ": "step 3\nERROR: no compiler"}
    with pytest.raises(BuildFailed, match="nothing has changed: ERROR: no compiler"):
        fleet.roll(OPTIONS)
    assert docker.journal == [] and "step 3" in docker.files[RUN / "logs" / "build.log"]


def test_after_a_bad_image_its_name_means_the_old_one_again() -> None:
    """Whoever starts one more worker, or restarts the machine, gets what has worked."""
    docker = Docker({3: TORN})
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    docker.when = {"build worker": lambda: setattr(docker, "image", "sha256:bad")}
    with pytest.raises(RollHalted):
        fleet.roll(OPTIONS)
    assert docker.image == "sha256:one" and docker.journal[-1] == "tag sha256:one"


def test_scale_says_where_the_number_comes_from() -> None:
    """The next plain ``docker compose up -d`` returns to the file's."""
    docker = Docker()
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    assert fleet.scale(3) == 2 and len(docker.workers) == 3
    said = cast(io.StringIO, fleet.desk.console.file).getvalue()
    assert "docker-compose.yml says replicas: 2" in said


@pytest.mark.parametrize(
    "state, cure", [("paused", "docker unpause kronos-worker-1"), ("restarting", "docker logs kronos-worker-1")]
)
def test_what_does_not_serve_is_named_with_its_cure(state: str, cure: str) -> None:
    """In status and in up."""
    docker = Docker()
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    docker.workers[0].status = state
    assert f"worker-1 is {state}: {cure}" in str(fleet.advice(fleet.looks()))


def test_looks_are_for_programs_too() -> None:
    """What the tuning loop reads: who serves, and each worker's metrics."""
    docker = Docker()
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    looks = fleet.looks()
    assert [(look.name, look.is_worker, look.state) for look in looks] == [
        ("worker-1", True, "ready"), ("worker-2", True, "ready"), ("nginx", False, "ready"),
    ]  # fmt: skip
    assert [look.metrics for look in looks] == ["kronos_concurrent_requests 1\n"] * 2 + [None]


def test_who_is_dispensable() -> None:
    """Nobody when there are not too many."""
    docker = Docker()
    up(docker, 3)
    found = engine(docker).workers()
    assert dispensable(found, 5) == [] and [each.number for each in dispensable(found, 1)] == [3, 2]


def test_an_image_that_cannot_be_fetched_can_be_left_out() -> None:
    """Nothing has been started; the next command is the one that works."""
    docker = Docker(refuses={"image inspect": "No such image", " pull ": "no such host"})
    found = document()
    found["services"]["grafana"] = {"image": "grafana:1"}
    docker.config = found
    with pytest.raises(EngineFailed, match="cannot fetch the image of nginx or grafana: no such host"):
        runtime(docker).up(OPTIONS)
    docker.refuses["image inspect --format {{.Id}} nginx:1"] = ""
    assert docker.boxes == []


@pytest.mark.parametrize("name", ["nginx", "worker", "nothing"])
def test_only_what_is_optional_can_be_left_out(name: str) -> None:
    """Nginx and the workers are the fleet."""
    with pytest.raises(BadSetting, match=f"--without {name}"):
        runtime(Docker()).up(argparse.Namespace(**{**vars(OPTIONS), "without": [name]}))


@pytest.mark.parametrize(
    "what, done",
    [("file", ["renew nginx", "up nginx"]), ("folder", ["up nginx", "HUP kronos-nginx-1"]), ("nothing", ["up nginx"])],
)
def test_changed_files_reach_nginx(tmp_path: Path, what: str, done: list[str]) -> None:
    """A single mounted file needs a new container, since an editor may have replaced it; a folder is read again."""
    place = tmp_path / "hosts"
    place.mkdir()
    for name, path in (("file", tmp_path / "nginx.conf"), ("folder", place / "second.conf")):
        path.write_text("")
        os.utime(path, (0, 2e9) if name == what else (0, 0))
    volumes = [{"type": "bind", "source": str(source), "target": "/x"} for source in (tmp_path / "nginx.conf", place)]
    docker = Docker(config=document(volumes=volumes))
    fleet = runtime(docker)
    fleet.up(OPTIONS)
    docker.journal.clear()
    fleet.up(OPTIONS)
    assert docker.journal == ["build worker", *done]


def test_a_container_that_goes_while_it_is_looked_at_is_left_out() -> None:
    """Named by ``docker ps``, gone at ``docker inspect``: asked again, as long as that is the reason."""

    class Restless(Docker):
        ghosts = 2

        def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
            if "inspect" in argv and self.ghosts:
                self.ghosts -= 1
                raise CommandFailed(argv, "[]\nError response from daemon: No such container: kronos-worker-9")
            return super().ask(argv, env, cwd)

    docker = Restless()
    up(docker, workers=3)
    docker.ghosts = 2
    assert names(docker) == [each.name.removeprefix("kronos-") for each in engine(docker).workers()]
    docker.ghosts = 9
    with pytest.raises(EngineFailed, match="No such container"):
        engine(docker).containers()
