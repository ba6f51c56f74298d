"""What docker-compose.yml, .env.example, the Dockerfile and the code say of the same things is the same. Needs no engine."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from app import probe
from app.settings import Settings, names
from tests.docs import ROOT, dials

COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
DOCKERFILE = (ROOT / "app/Dockerfile").read_text()
FIXED_IN_CONTAINERS = {
    "KRONOS_BIND": "the port is the image's",
    "KRONOS_WORKER_NAME": "the container's host name",
    "KRONOS_WORKERS": "one process a container",
}
POOLS = re.compile(r"KRONOS_(IO|CPU|INFERENCE|EMBEDDING|DB)_WORKERS")


def test_every_setting_of_the_worker_can_be_given_in_env() -> None:
    """The container passes each on, but those that containers fix; and none that does not exist."""
    settings = {names(field)[0] for field in Settings.model_fields.values()}
    passed = set(COMPOSE["services"]["worker"]["environment"])
    assert passed == {name for name in settings if name not in FIXED_IN_CONTAINERS and not POOLS.fullmatch(name)}


def test_env_example_names_every_dial_with_its_default() -> None:
    """`.env.example` is the only place an operator has to look; its defaults are those of docker-compose.yml."""
    used = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", COMPOSE_TEXT))
    used |= dict.fromkeys(set(re.findall(r"\$\{([A-Z_]+)", COMPOSE_TEXT)) - used.keys(), "")
    shown = {dial.name: dial.default for dial in dials()}
    settings = {names(field)[0]: str(field.default) for field in Settings.model_fields.values()}
    examples = {name: default for name, default in shown.items() if name in settings}
    assert {name: default for name, default in shown.items() if name not in settings} == used
    for name, default in examples.items():
        assert default == settings[name].removesuffix(".0")
    assert all(dial.what for dial in dials())


def test_five_replicas_by_one_literal_line() -> None:
    """The operator scales by editing it."""
    assert re.findall(r"(?m)^\s+replicas: (\d+)$", COMPOSE_TEXT) == ["5"]


def test_every_service_has_a_sentence_and_a_pinned_image() -> None:
    """A comment above each service says what it is for; no tag floats."""
    for name, service in COMPOSE["services"].items():
        assert re.search(rf"(?m)^  # [A-Z].+\.\n  {name}:$", COMPOSE_TEXT), name
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name


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
