"""The pure layer of the container fleet: argv of ``docker`` and ``docker compose``.

Knows: how docker wants to be told things. Does not know: whether anybody runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER, NGINX = "worker", "nginx"
LABEL = "com.docker.compose"
"""What Compose writes on its containers; images that it has built carry some of it too."""
DEFAULT_PROJECT = "kronos"


@dataclass(frozen=True)
class Place:
    """Which fleet of this machine. ``files`` take the place of docker-compose.yml and its override, in order."""

    root: Path
    project: str = DEFAULT_PROJECT
    files: Sequence[str] = ()

    @property
    def flags(self) -> list[str]:
        """The options of ``python -m fleet`` and their values that mean this place."""
        project = [] if self.project == DEFAULT_PROJECT else ["--project", self.project]
        return [*project, *(part for file in self.files for part in ("--file", file))]


def compose(place: Place, *arguments: str) -> list[str]:
    """``docker compose`` for this fleet, whatever the working folder."""
    files = [part for file in place.files for part in ("-f", file)]
    return ["docker", "compose", "--project-directory", str(place.root), "-p", place.project, *files, *arguments]


def config(place: Place) -> list[str]:
    """Everything docker-compose.yml, .env and the environment come to, as JSON."""
    return compose(place, "config", "--format", "json")


def config_hash(place: Place, services: Sequence[str]) -> list[str]:
    """One line for each service: name and hash of its configuration, as containers carry it in a label."""
    return compose(place, "config", "--hash", ",".join(services))


def build(place: Place, services: Sequence[str]) -> list[str]:
    """The images of ``services``, from their sources."""
    return compose(place, "build", *services)


def pull(place: Place, services: Sequence[str]) -> list[str]:
    """The images of ``services``, from their registries."""
    return compose(place, "pull", *services)


def up_workers(place: Place, total: int) -> list[str]:
    """As many new workers as are missing to ``total``. Those that run are not touched, whatever has changed."""
    kept = ["--no-recreate", "--no-build", "--no-deps", "--pull", "never"]
    return compose(place, "up", "-d", *kept, "--scale", f"{WORKER}={total}", WORKER)


def up_rest(place: Place, services: Sequence[str], fresh: bool = False) -> list[str]:
    """The services beside the workers; those whose configuration changed are recreated, all of them when ``fresh``."""
    return compose(place, "up", "-d", "--no-build", "--no-deps", *(["--force-recreate"] if fresh else []), *services)


def down(place: Place, volumes: bool, timeout_s: float | None) -> list[str]:
    """Stop and remove all, nginx before the workers it depends on; ``timeout_s`` instead of each one's own grace."""
    grace = [] if timeout_s is None else ["--timeout", f"{timeout_s:.0f}"]
    return compose(place, "down", *grace, *(["--volumes"] if volumes else []))


def logs(place: Place, services: Sequence[str], lines: int, follow: bool) -> list[str]:
    """Lines that begin with the container's name and a bar."""
    return compose(place, "logs", "--no-color", "--tail", str(lines), *(["--follow"] if follow else []), *services)


def container_logs(container: str, lines: int, follow: bool = False) -> list[str]:
    """The lines of one container, bare."""
    return ["docker", "logs", "--tail", str(lines), *(["--follow"] if follow else []), container]


def containers(place: Place) -> list[str]:
    """Ids of all containers of the fleet, also those that have ended, but none of ``docker compose run``."""
    labels = [f"label={LABEL}.project={place.project}", f"label={LABEL}.oneoff=False"]
    return ["docker", "ps", "--all", "--quiet", "--no-trunc", *(part for label in labels for part in ("--filter", label))]


def inspect(ids: Sequence[str]) -> list[str]:
    """All that the engine knows of the containers, as a JSON list."""
    return ["docker", "inspect", "--type", "container", *ids]


def image_id(image: str) -> list[str]:
    """What the name of an image means now."""
    return ["docker", "image", "inspect", "--format", "{{.Id}}", image]


def tag(image: str, name: str) -> list[str]:
    """``name`` means ``image`` from now on."""
    return ["docker", "tag", image, name]


def probe(container: str, path: str) -> list[str]:
    """What the worker in a container answers there; this host may not reach its address."""
    return ["docker", "exec", container, "python", "-m", "app.probe", path]


def stop(container: str, grace_s: float) -> list[str]:
    """SIGTERM, and SIGKILL after ``grace_s`` seconds."""
    return ["docker", "stop", "--time", f"{grace_s:.0f}", container]


def hang_up(container: str) -> list[str]:
    """SIGHUP: read your files again."""
    return ["docker", "kill", "--signal", "HUP", container]


def remove(container: str) -> list[str]:
    """Forget it; kills it if it still runs."""
    return ["docker", "rm", "--force", container]


def stats(ids: Sequence[str]) -> list[str]:
    """One JSON document a line with what each container uses now."""
    return ["docker", "stats", "--no-stream", "--no-trunc", "--format", "{{json .}}", *ids]


def holder(port: int) -> list[str]:
    """Name of the container that publishes a port, if it is one."""
    return ["docker", "ps", "--filter", f"publish={port}", "--format", "{{.Names}}"]


def version() -> list[str]:
    """Of the engine; fails when it does not answer."""
    return ["docker", "version", "--format", "{{.Server.Version}}"]


def compose_version() -> list[str]:
    """Of the plug-in; fails when there is none."""
    return ["docker", "compose", "version", "--short"]


def memory() -> list[str]:
    """Bytes of the engine's machine."""
    return ["docker", "info", "--format", "{{.MemTotal}}"]
