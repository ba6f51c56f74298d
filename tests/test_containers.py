"""What docker-compose.yml, .env.example, the Dockerfile and the code say of the same things is the same. Needs no engine."""

from __future__ import annotations

import itertools
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from app import probe
from app.settings import Settings, load, names
from tests.docs import ROOT, dials

COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
DOCKERFILE = (ROOT / "app/Dockerfile").read_text()
FIXED_IN_CONTAINERS = {
    "KRONOS_BIND": "the port is the image's",
    "KRONOS_WORKER_NAME": "the container's host name",
    "KRONOS_WORKERS": "one process a container",
}
OBJECT_STORE = {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
"""What the library that writes to S3 reads by itself."""


def full_env() -> dict[str, str]:
    """The variables of full.env."""
    lines = [line for line in (ROOT / "full.env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def servers() -> dict[str, dict[str, Any]]:
    """The services that only a profile starts."""
    return {name: service for name, service in COMPOSE["services"].items() if "profiles" in service}


def test_every_setting_of_the_worker_can_be_given_in_env() -> None:
    """The container passes each on, but those that containers fix; and none that does not exist."""
    settings = {names(field)[0] for field in Settings.model_fields.values()}
    passed = {entry.partition("=")[0] for entry in COMPOSE["services"]["worker"]["environment"]}
    assert passed == (settings - FIXED_IN_CONTAINERS.keys()) | OBJECT_STORE


def test_env_example_names_every_dial_with_its_default() -> None:
    """`.env.example` is the only place an operator has to look; its defaults are docker-compose.yml's, else the worker's."""
    used = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", COMPOSE_TEXT))
    used |= dict.fromkeys(set(re.findall(r"\$\{([A-Z_]+)", COMPOSE_TEXT)) - used.keys(), "")
    shown = {dial.name: dial.default for dial in dials()}
    settings = {names(field)[0]: str(field.default) for field in Settings.model_fields.values()}
    examples = {name: default for name, default in shown.items() if name in settings}
    for name, default in examples.items():
        assert default == used.pop(name, settings[name].removesuffix(".0"))
    assert {name: default for name, default in shown.items() if name not in settings} == used
    assert all(dial.what for dial in dials())


def test_five_replicas_by_one_literal_line() -> None:
    """The operator scales by editing it."""
    assert re.findall(r"(?m)^\s+replicas: (\d+)$", COMPOSE_TEXT) == ["5"]


def test_every_service_has_a_sentence_and_a_pinned_image() -> None:
    """A comment above each service says what it is for; no tag floats."""
    for name, service in COMPOSE["services"].items():
        assert re.search(rf"(?m)^  # [A-Z].+\.\n  {name}:$", COMPOSE_TEXT), name
        pinned = r":8$" if service["image"].startswith("valkey/") else r":v?\d+\.\d+"
        assert "build" in service or re.search(pinned, service["image"]), name


def test_every_server_is_told_of_in_full_env() -> None:
    """Each service of the profile `full` has a setting that leads workers to it, by a name that Compose gives, and there is no
    setting for anything else; passwords are left to whoever starts it."""
    given = full_env()
    known = {names(field)[0] for field in Settings.model_fields.values()} | OBJECT_STORE
    assert given.pop("COMPOSE_PROFILES") == "full" and given.pop("POSTGRES_PASSWORD") == "" == given["AWS_SECRET_ACCESS_KEY"]
    assert given.keys() <= known
    hosts = {match[1] for value in given.values() if (match := re.search(r"(?:://(?:[^@/]*@)?|^)([\w-]+):\d+", value))}
    assert hosts == {name for name, service in servers().items() if "full" in service["profiles"]} == servers().keys()


def test_settings_of_full_env_are_accepted() -> None:
    """By the worker's own reader of settings, once the passwords are filled in."""
    given = {key: value.replace("${POSTGRES_PASSWORD}", "secret") for key, value in full_env().items()}
    load({key: value for key, value in given.items() if key.startswith("KRONOS_")}, ROOT / "config.yaml")


@pytest.mark.parametrize("name", servers())
def test_servers_are_hardened_and_publish_nothing(name: str) -> None:
    """As all others: read-only, no capabilities, limits, a health check; no default password. (rclone's folder is root's.)"""
    service = servers()[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in service and {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"} and service["restart"] == "unless-stopped"
    assert (service["user"].partition(":")[0] in {"0", "root"}) is (name == "s3")
    secrets = [value for key, value in service.get("environment", {}).items() if re.search("PASSWORD|SECRET", key)]
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-\}", value) for value in secrets)


def test_answers_may_be_pushed_out_and_jobs_may_not() -> None:
    """Two servers, because they must forget differently: one drops the oldest and writes nothing down, one the opposite."""
    options = {name: dict(itertools.pairwise(servers()[name]["command"])) for name in ("valkey", "valkey-jobs")}
    kept = {name: (each["--maxmemory-policy"], each["--appendonly"], each["--save"]) for name, each in options.items()}
    assert kept == {"valkey": ("allkeys-lru", "no", ""), "valkey-jobs": ("noeviction", "yes", "")}
    assert "volumes" not in servers()["valkey"] and servers()["valkey-jobs"]["volumes"] == ["jobs:/data"]


def test_the_image_installs_the_torch_that_was_tested() -> None:
    """One version, in the lock and in the Dockerfile."""
    locked = re.search(r"(?m)^torch==(\S+)", (ROOT / "requirements-dev.lock").read_text())
    assert locked
    assert f"ARG TORCH={locked[1]}\n" in DOCKERFILE


def test_dependencies_come_before_the_source() -> None:
    """A change of the source does not install anything again; the last stage has no compiler."""
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert DOCKERFILE.index("COPY requirements.lock") < DOCKERFILE.index("COPY app app")
    assert "apt-get" not in last and "pip" not in last
    assert last.index("COPY --from=packages") < last.index("COPY app app")


def test_the_probe_asks_where_a_worker_listens() -> None:
    """It reads no settings, for speed; so its default is held against theirs."""
    assert Settings.model_fields["bind"].default == probe.DEFAULT_BIND


@pytest.mark.parametrize("status, well", [(200, True), (503, False)])
def test_the_probe_says_what_the_worker_says(status: int, well: bool) -> None:
    """Ready is 200 and nothing else; the body is passed on either way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert probe.ask("/readyz", f"0.0.0.0:{server.server_port}") == (well, b"/readyz")
        thread.join()
    found, said = probe.ask("/readyz", f"0.0.0.0:{server.server_port}")
    assert not found and b"refused" in said


def test_the_ignore_file_lets_only_the_worker_through() -> None:
    """Everything the Dockerfile copies is allowed; reports, tests, environments and .env never reach the builder."""
    allowed = {line[1:] for line in Path(ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
              for source in line.split()[1:-1]}  # fmt: skip
    assert {source.split("/")[0] for source in copied} == {name.split("/")[0] for name in allowed}
