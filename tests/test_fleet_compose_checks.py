"""The container fleet's pure layer: what docker is told, what is read from it, and what is refused beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.compose import checks, commands, containers, project
from fleet.compose.commands import Place
from fleet.errors import BadSetting, FleetError, MissingModel, NoEngine, NoMemory
from fleet.settings import effective_settings
from tests.fleet.docker import OPTIONS, Docker, document, engine, runtime
from tests.fleet.live import ROOT, Live

PLACE = Place(Path("/repo"))
COMPOSE = ["docker", "compose", "--project-directory", "/repo", "-p", "kronos"]
KEPT = ["--no-recreate", "--no-build", "--no-deps", "--pull", "never"]


@pytest.mark.parametrize(
    "argv, expected",
    [
        (
            commands.up_workers(PLACE, 6),
            [*COMPOSE, "up", "-d", *KEPT, "--scale", "worker=6", "worker"],
        ),
        (commands.up_rest(PLACE, ["nginx"]), [*COMPOSE, "up", "-d", "--no-build", "--no-deps", "nginx"]),
        (commands.down(PLACE, True, 3), [*COMPOSE, "down", "--timeout", "3", "--volumes"]),
        (commands.stop("kronos-worker-1", 45), ["docker", "stop", "--time", "45", "kronos-worker-1"]),
        (
            commands.build(Place(Path("/repo"), "kronos", ["a.yml", "b.yml"]), ["worker"]),
            [*COMPOSE, "-f", "a.yml", "-f", "b.yml", "build", "worker"],
        ),
    ],
)
def test_what_docker_is_told(argv: list[str], expected: list[str]) -> None:
    """Workers that run are never recreated by a start, and nobody waits for a registry on the way."""
    assert argv == expected


def test_the_operator_s_own_command_names_the_place() -> None:
    """Every "Next:" can be typed as it stands."""
    at = replace(engine(Docker()), place=Place(ROOT, "second", ["x y.yml"]))
    assert at.command == "python -m fleet --runtime compose --project second --file 'x y.yml'"


def test_the_project_is_read() -> None:
    """What the fleet's own docker-compose.yml comes to, in one shape."""
    wanted = project.read(document(replicas=7))
    assert (wanted.replicas, wanted.memory, wanted.cpus, wanted.image) == (7, 2**30, 1, "kronos:dev")
    assert (wanted.contact, wanted.port, wanted.read_timeout_s, wanted.grace_s) == ("127.0.0.1", 8080, 34, 45)
    assert wanted.settings == {"KRONOS_SLOTS": "8"} and wanted.accepts == {"KRONOS_SLOTS", "KRONOS_MODEL"}
    assert wanted.rest == ["nginx"]


@pytest.mark.parametrize("text, expected", [("45s", 45), ("1m30s", 90), ("500ms", 0.5), ("34", 34), (None, 7)])
def test_durations(text: str | None, expected: float) -> None:
    """As Compose and nginx write them."""
    assert project.seconds(text, 7) == expected


@pytest.mark.parametrize("text, expected", [("3.5MiB", 3.5 * 2**20), ("564KiB", 564 * 2**10), ("1.2GB", 1.2e9), ("--", 0)])
def test_amounts(text: str, expected: float) -> None:
    """As ``docker stats`` writes them."""
    assert containers.amount(text) == int(expected)


def test_variables_of_an_env_file() -> None:
    """Comments and defaults that are commented out set nothing."""
    assert project.names("# KRONOS_A=1\nKRONOS_B=2\n export C = 3\n\nnonsense\n") == ["KRONOS_B", "C"]


@pytest.mark.parametrize(
    "docker, words, then",
    [
        (Docker(absent=True), "there is no docker command", "install Docker Engine"),
        (Docker(refuses={"compose version": "docker: 'compose' is not a docker command"}), "no Compose v2", "install Docker"),
        (
            Docker(refuses={"docker version": "Cannot connect to the Docker daemon"}),
            "does not answer: Cannot connect",
            "systemctl",
        ),
        (Docker(refuses={"docker version": "permission denied while trying"}), "permission denied", "usermod -aG docker"),
    ],
)
@pytest.mark.parametrize("verb", ["up", "scale", "roll", "down", "front", "looks"])
def test_without_an_engine_each_verb_says_what_to_install_or_start(docker: Docker, words: str, then: str, verb: str) -> None:
    """Not what a missing socket looks like."""
    arguments: dict[str, tuple[Any, ...]] = {"up": (OPTIONS,), "roll": (OPTIONS,), "down": (OPTIONS,), "scale": (2,)}
    with pytest.raises(NoEngine, match=words) as caught:
        getattr(runtime(docker), verb)(*arguments.get(verb, ()))
    assert then in caught.value.then


def wanted(**environment: str) -> project.Project:
    found = document()
    found["services"]["worker"]["environment"] |= environment
    return project.read(found)


@pytest.mark.parametrize(
    "inference, read, grace, words",
    [
        (30, 34, 45, ""),
        (33, 34, 45, "PROXY_READ_TIMEOUT"),
        (30, 50, 45, "STOP_GRACE"),
        (30, 34, 34, "STOP_GRACE"),
    ],
)
def test_the_ladder_of_timeouts(inference: float, read: float, grace: float, words: str) -> None:
    """The longest answer < nginx's patience < what a stopping container is granted; the cure names the dial."""
    given = replace(wanted(), read_timeout_s=read, grace_s=grace)
    effective = {"inference_timeout": inference, "drain_delay": 0}
    if not words:
        checks.ladder(given, effective)
        return
    with pytest.raises(BadSetting, match=words) as caught:
        checks.ladder(given, effective)
    assert f"set {words}=" in caught.value.then


@pytest.mark.parametrize("workers, refused", [(16, False), (17, True)])
def test_more_than_the_machine_has_is_refused(workers: int, refused: bool) -> None:
    """Replicas × limit against the engine's memory, before anything is started."""
    at = engine(Docker())
    if not refused:
        checks.memory(at, wanted(), workers, 0)
        return
    with pytest.raises(NoMemory, match=r"17 workers × 1\.0 GiB are 17\.0 GiB, and this engine has 16\.0 GiB"):
        checks.memory(at, wanted(), workers, 0)


@pytest.mark.parametrize(
    "model, words",
    [
        ("/models/none", "there is no such folder"),
        ("/models/data", "has no config.json and no model.safetensors"),
        ("/elsewhere", "is not in a folder that containers see"),
        ("nothing at all", "neither a folder nor a hub id"),
        ("models/demo/model", ""),
        ("owner/name@revision", ""),
    ],
)
def test_checkpoints_are_looked_for_where_containers_see_them(model: str, words: str) -> None:
    """On the host's side of the mount, before anything is started."""
    found = document()
    found["services"]["worker"]["volumes"] = [{"type": "bind", "source": str(ROOT / "tests"), "target": "/models"}]
    effective = {"model": model, "tokenizer": "models/demo/tokenizer"}
    if not words:
        checks.checkpoints(project.read(found), effective, engine(Docker()))
        return
    with pytest.raises(MissingModel, match=words):
        checks.checkpoints(project.read(found), effective, engine(Docker()))


def test_a_dial_that_reaches_no_worker_is_refused() -> None:
    """A misspelt setting does not vanish silently."""
    at = engine(Docker())
    at.desk.env = {"KRONOS_SLOT": "3"}
    with pytest.raises(BadSetting, match="KRONOS_SLOT in the shell reaches no worker; did you mean KRONOS_SLOTS"):
        checks.dials(at, wanted())


def test_our_own_compose_file_passes_every_check() -> None:
    """The defaults climb the ladder."""
    effective = effective_settings({}, {}, ROOT)
    checks.ladder(wanted(), effective)


def test_errors_have_codes_of_their_own() -> None:
    """A script can tell them apart."""
    codes = [error.code for error in FleetError.__subclasses__()]
    assert len(codes) == len(set(codes)) and 1 not in codes and 2 not in codes


@pytest.mark.parametrize(
    "arguments, words",
    [(["up", "--port", "1"], "set PUBLISH_PORT in .env"), (["roll", "--model", "x"], "set MODELS and KRONOS_MODEL in .env")],
)
def test_options_of_the_other_runtime_say_what_to_do_instead(tmp_path: Path, arguments: list[str], words: str) -> None:
    """None vanishes silently."""
    fleet = Live(tmp_path / "run", port=1, worker_port=2)
    code, said = fleet.cli(*arguments, env={"FLEET_RUNTIME": "compose"})
    assert code == 3 and words in said
