"""``python -m fleet --runtime compose`` on real containers: the operator's verbs, and what clients notice of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.__main__ import main
from tests.fleet.live import free_ports
from tests.stack.stack import ROOT, Container, Stack, command, missing_engine, wait_until

WORKERS = 2
USERS, PAUSE = 3, (0.02, 0.15)
BROKEN = """
FROM {image}
CMD ["python", "-c", "raise RuntimeError('this version forgot its engine')"]
"""


@dataclass
class Operated:
    """One project, changed by the command line only."""

    stack: Stack
    run: Path

    @property
    def arguments(self) -> list[str]:
        files = ("--file", str(self.stack.file), "--file", str(self.stack.folder / "no-grafana.yml"))
        return ["--runtime", "compose", "--run", str(self.run), "--project", self.stack.project, *files]

    def environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("KRONOS_", "FLEET_"))}
        return {**inherited, **self.stack.environment, **(more or {})}

    def cli(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """``python -m fleet`` in this process: exit code and everything it said."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = main([*self.arguments, *arguments], self.environment(env))
        return code, said.getvalue()

    def start_cli(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a process of its own, to be interrupted."""
        argv = [sys.executable, "-m", "fleet", *self.arguments, *arguments]
        env = self.environment(None)
        return subprocess.Popen(argv, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @property
    def workers(self) -> list[Container]:
        return self.stack.containers()

    @contextmanager
    def fewest_healthy(self) -> Iterator[list[int]]:
        """How many workers were healthy, seen twice a second for as long as the block lasts."""
        seen: list[int] = []
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.5):
                seen.append(sum(worker.healthy for worker in self.workers))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """A project with an image of its own, since some of these images are bad."""
    if reason := missing_engine():
        pytest.skip(reason)
    port, folder = free_ports(), tmp_path_factory.mktemp("operate")
    image = f"kronos-fleet-worker:kt-{port}"
    found = Operated(Stack(f"kt-op-{port}", port, folder, {"WORKER_IMAGE": image}), folder / "run")
    found.stack.edit_replicas(WORKERS)
    try:
        yield found
    finally:
        found.stack.down()
        command("docker", "image", "rm", "--force", image, f"{image}-broken")


@pytest.fixture
def fleet(operated: Operated) -> Operated:
    """As many sound workers as docker-compose.yml says, whatever the test before did to them."""
    code, said = operated.cli("up")
    assert code == 0, said
    return operated


def test_up_proves_itself_and_may_be_repeated(operated: Operated) -> None:
    """The first up shows a forecast, the second changes nothing."""
    code, said = operated.cli("up")
    assert code == 0, said
    assert "Up after" in said and f"http://127.0.0.1:{operated.stack.port}" in said and "served by" in said
    before = [worker.id for worker in operated.workers]
    assert len(before) == WORKERS
    code, said = operated.cli("up")
    assert code == 0 and f"Already up: {WORKERS} workers" in said
    assert [worker.id for worker in operated.workers] == before


def test_status_logs_and_predict(fleet: Operated, tmp_path: Path) -> None:
    """Each worker under the name that its answers carry, with its numbers; the services beside it; its log; a forecast."""
    table = tmp_path / "out.csv"
    code, said = fleet.cli("predict", str(ROOT / "examples" / "candles-5m.csv"), "--horizon", "12", "--out", str(table))
    assert code == 0, said
    assert len(table.read_text().splitlines()) == 13
    rows = {row["name"]: row for row in json.loads(fleet.cli("status", "--json")[1])["processes"]}
    workers = [row for name, row in rows.items() if name.startswith("worker-")]
    assert {row["container"] for row in workers} == {worker.host_name for worker in fleet.workers}
    assert all(row["state"] == "ready" and row["in_flight"] == row["queued"] == row["restarts"] == 0 for row in workers)
    assert all(20 < row["memory_mb"] < 1000 for row in workers)
    assert rows["nginx"]["state"] == rows["prometheus"]["state"] == "ready"
    code, said = fleet.cli("logs", workers[0]["name"], "-n", "3")
    assert code == 0 and len(said.splitlines()) == 3 and "{" in said
    assert fleet.cli("logs", "worker-99")[0] == 3


def test_scale_under_load_loses_nothing(fleet: Operated) -> None:
    """2 → 3 → 2 under load; the operator is told what the next up will do."""
    requests = fleet.stack.requests()
    with fleet.stack.load(requests, USERS, PAUSE) as traffic:
        code, said = fleet.cli("scale", "3")
        assert code == 0, said
        assert f"docker-compose.yml says replicas: {WORKERS}" in said
        assert sum(worker.healthy for worker in fleet.workers) == 3
        assert fleet.cli("scale", "2")[0] == 0
    assert len(fleet.workers) == 2
    assert traffic.failures == [] and len(traffic.exchanges) > 50


def test_a_roll_under_load_loses_nothing(fleet: Operated) -> None:
    """Every worker is another container with the settings of now; never fewer served; each answer was the right one."""
    before = {worker.id for worker in fleet.workers}
    requests = fleet.stack.requests()
    with fleet.fewest_healthy() as healthy, fleet.stack.load(requests, USERS, PAUSE) as traffic:
        code, said = fleet.cli("roll", env={"KRONOS_SLOTS": "4"})
        assert code == 0, said
    assert traffic.failures == [] and len(traffic.exchanges) > 100
    assert min(healthy) >= WORKERS
    after = fleet.workers
    assert len(after) == WORKERS and not before & {worker.id for worker in after}
    assert all("KRONOS_SLOTS=4" in worker.facts["Config"]["Env"] for worker in after)


def test_up_rolls_workers_of_other_settings(fleet: Operated) -> None:
    """What ``docker compose up -d`` does with an outage, up does without: changed settings, one worker at a time."""
    requests = fleet.stack.requests()
    with fleet.stack.load(requests, USERS, PAUSE) as traffic:
        code, said = fleet.cli("up", env={"KRONOS_SLOTS": "6"})
        assert code == 0 and "Other settings or another image" in said and "Mended" in said
    assert traffic.failures == []
    assert all("KRONOS_SLOTS=6" in worker.facts["Config"]["Env"] for worker in fleet.workers)


def halted(fleet: Operated, *words: str, env: Mapping[str, str], more: tuple[str, ...] = ()) -> None:
    """A roll that halts: exit code, reason and next command; the same containers serve, nobody notices."""
    before = [worker.id for worker in fleet.workers]
    requests = fleet.stack.requests()
    with fleet.stack.load(requests, USERS, PAUSE) as traffic:
        code, said = fleet.cli("roll", *more, env=env)
    assert code == 14 and all(word in said for word in (*words, "The roll has halted", "Next: read ")), said
    assert traffic.failures == [] and len(traffic.exchanges) > 20
    assert [worker.id for worker in fleet.workers] == before


def test_bad_weights_halt_the_roll(fleet: Operated, tmp_path: Path) -> None:
    """F19: a checkpoint cut while it was copied. The reason is the worker's own."""
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "demo", models / "demo")
    weights = models / "demo" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    models.chmod(0o755)
    halted(fleet, "safetensors", env={"MODELS": str(models), "KRONOS_MODEL": "/models/demo/model"})


def test_a_bad_image_halts_the_roll(fleet: Operated, tmp_path: Path) -> None:
    """F19: a version that does not start. A worker more can still be had: the image's name means the old one again."""
    image = fleet.stack.env["WORKER_IMAGE"]
    (tmp_path / "Dockerfile").write_text(BROKEN.format(image=image))
    good = command("docker", "image", "inspect", "--format", "{{.Id}}", image)
    command("docker", "build", "--quiet", "--tag", f"{image}-broken", str(tmp_path))
    halted(fleet, "this version forgot its engine", env={"WORKER_IMAGE": f"{image}-broken"}, more=("--no-build",))
    assert command("docker", "image", "inspect", "--format", "{{.Id}}", image) == good


def test_an_image_that_cannot_be_built_changes_nothing(fleet: Operated) -> None:
    """The builder's own last words, and the whole of them in a file."""
    before = [worker.id for worker in fleet.workers]
    source, broken = fleet.stack.folder / "Dockerfile", fleet.stack.folder / "broken.yml"
    source.write_text("FROM nginx:1.30-trixie\nRUN echo there is no compiler here && false\n")
    broken.write_text(f"services: {{ worker: {{ build: {{ dockerfile: {source} }} }} }}\n")
    code, said = fleet.cli("--file", str(broken), "roll")
    assert code == 17 and "worker could not be built, nothing has changed" in said, said
    log = fleet.run / f"compose-{fleet.stack.project}" / "logs" / "build.log"
    assert str(log) in said and "no compiler here" in log.read_text()
    assert [worker.id for worker in fleet.workers] == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_roll_is_completed_by_the_next(fleet: Operated, end: signal.Signals) -> None:
    """Ctrl-C, or the death of the command, while a successor starts: nobody notices, and in the end there are as many
    workers as before, all of them new."""
    before = {worker.id for worker in fleet.workers}
    requests = fleet.stack.requests()
    with fleet.stack.load(requests, USERS, PAUSE) as traffic:
        with fleet.start_cli("roll", "--no-build") as process:
            wait_until(lambda: len(fleet.workers) == WORKERS + 1, 60)
            process.send_signal(end)
            process.communicate(timeout=60)
        code, said = fleet.cli("roll", "--no-build")
        assert code == 0, said
    assert traffic.failures == []
    assert len(fleet.workers) == WORKERS and not before & {worker.id for worker in fleet.workers}


def test_what_does_not_serve_is_named_with_its_cure(fleet: Operated) -> None:
    """A paused worker: status and up say which, and what to type."""
    name = fleet.workers[0].name
    command("docker", "pause", name)
    try:
        for verb in ("status", "up"):
            code, said = fleet.cli(verb)
            assert code == 0 and f"is paused: docker unpause {name}" in said.replace("\n", " "), said
    finally:
        command("docker", "unpause", name)


def test_a_worker_that_is_gone_is_mended(fleet: Operated) -> None:
    """Removed by hand: up starts one, and only one."""
    first, second = fleet.workers
    command("docker", "rm", "--force", first.name)
    code, said = fleet.cli("up")
    assert code == 0 and "Starting 1 worker" in said and f"Mended: {WORKERS} workers" in said
    assert len(fleet.workers) == WORKERS and second.id in {worker.id for worker in fleet.workers}


def test_nginx_with_new_settings_is_made_anew_and_the_outage_is_said(fleet: Operated) -> None:
    """A roll names it and leaves it alone; up makes it anew. The workers are not touched."""
    workers, [nginx] = [worker.id for worker in fleet.workers], fleet.stack.containers("nginx")
    code, said = fleet.cli("up", env={"PROXY_READ_TIMEOUT": "36s"})
    assert code == 0 and "nginx has new settings: new connections are refused until its successor listens" in said
    assert fleet.stack.containers("nginx")[0].id != nginx.id
    assert [worker.id for worker in fleet.workers] == workers
    assert fleet.stack.ask("GET", "/healthz").status == 200


def test_a_port_in_use_is_named(fleet: Operated) -> None:
    """By the container that holds it, before anything is started."""
    other = Operated(Stack(f"{fleet.stack.project}-2", fleet.stack.port, fleet.run, fleet.stack.env), fleet.run / "second")
    code, said = other.cli("up", "--no-build")
    assert code == 4 and f"is in use by the container {fleet.stack.project}-nginx-1" in said
    assert f"PUBLISH_PORT={fleet.stack.port + 1}" in said and other.workers == []


def test_down_leaves_nothing_but_volumes(fleet: Operated) -> None:
    """No container, no open port; what Prometheus has kept stays unless it is to go too; repeating is fine."""
    code, said = fleet.cli("down")
    assert code == 0 and "Down: nothing is left running" in said
    of_project = ("--filter", f"label=com.docker.compose.project={fleet.stack.project}", "--quiet")
    assert command("docker", "ps", "--all", *of_project, "--filter", "label=com.docker.compose.oneoff=False") == ""
    assert command("docker", "volume", "ls", *of_project) != ""
    assert fleet.cli("down") == (0, "Nothing is running\n")
    assert fleet.cli("status")[0] == 7
    assert fleet.cli("down", "--volumes")[0] == 0
    assert command("docker", "volume", "ls", *of_project) == ""
