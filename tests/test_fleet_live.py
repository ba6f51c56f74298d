"""The fleet as the operator and its clients see it: real processes, real nginx, a stub for the model."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fleet.host import Machine
from tests.fleet.live import ROOT, Live, live, wait_until

EXAMPLE = str(ROOT / "examples" / "candles-5m.csv")
KILLS = 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Live]:
    with live(tmp_path / "run") as found:
        yield found


def test_up_predict_scale_down_under_load(fleet: Live, tmp_path: Path) -> None:
    """up proves itself with a forecast; 3 → 8 → 2 under load loses nothing; down leaves nothing running."""
    code, said = fleet.up(3)
    assert code == 0, said
    assert "served by worker-" in said and "milliseconds: total" in said
    picture, table = tmp_path / "out.png", tmp_path / "out.csv"
    code, said = fleet.cli("predict", EXAMPLE, "--horizon", "12", "--plot", str(picture), "--out", str(table))
    assert code == 0, said
    assert picture.read_bytes().startswith(b"\x89PNG") and len(table.read_text().splitlines()) == 13

    with fleet.load(users=8) as traffic:
        time.sleep(1)
        assert fleet.cli("scale", "8")[0] == 0
        grown = time.monotonic()
        time.sleep(1)
        assert fleet.cli("scale", "2")[0] == 0
        assert time.monotonic() > grown
        time.sleep(1)
    assert traffic.failures == []
    assert set(traffic.shares()) == {f"worker-{number}" for number in range(1, 9)}

    state = fleet.fleet
    wait_until(lambda: len(fleet.running(state)) == 2 * 2 + 3, 10)
    code, said = fleet.cli("down")
    assert code == 0 and fleet.running(state) == []
    assert Machine().port_holder("127.0.0.1", fleet.port) is None
    assert fleet.cli("down") == (0, "Nothing is running\n")


@pytest.mark.slow
def test_kill_9_mid_request_is_invisible(fleet: Live) -> None:
    """Worker after worker killed with requests in flight: no client notices, and each is back."""
    fleet.up(3)
    with fleet.load(users=9, sleep=0.3) as traffic:
        for kill in range(KILLS):
            time.sleep(0.5)
            worker = fleet.worker(1 + kill % 3)
            before = fleet.child(worker)
            os.kill(before, signal.SIGKILL)
            wait_until(partial(fleet.came_back, worker, before), 20)
    assert traffic.failures == []
    retried = [entry for entry in fleet.access_log() if "," in entry["upstream"]]
    assert len(retried) >= KILLS and all(entry["status"] == 200 for entry in retried)


@pytest.mark.slow
def test_without_the_retry_kill_9_is_visible(fleet: Live) -> None:
    """The control of the test above: with nginx's second try switched off, clients see the same kill."""
    fleet.up(3)
    conf = fleet.run / "nginx" / "nginx.conf"
    text = conf.read_text()
    retry = "error timeout invalid_header http_500 http_502 http_503 non_idempotent;"
    assert retry in text
    text = text.replace(retry, "off;")
    conf.write_text(text.replace("error_page 502 = @again;", ""))
    nginx = fleet.fleet.nginx
    assert nginx is not None
    os.kill(nginx.pid, signal.SIGHUP)
    time.sleep(0.5)
    with fleet.load(users=9, sleep=0.3) as traffic:
        time.sleep(0.5)
        os.kill(fleet.child(fleet.worker(1)), signal.SIGKILL)
        time.sleep(0.5)
    assert {failure.failure for failure in traffic.failures} >= {"status 502"}


@pytest.mark.slow
def test_a_stopped_worker_is_replaced_and_nobody_notices(fleet: Live) -> None:
    """SIGSTOP: the supervisor misses the heartbeat, ends the worker, and its requests are answered by others."""
    fleet.up(3)
    worker = fleet.worker(2)
    with fleet.load(users=6, sleep=0.2) as traffic:
        time.sleep(0.5)
        before = fleet.child(worker)
        os.kill(before, signal.SIGSTOP)
        wait_until(lambda: before not in [member.pid for member in Machine().family(worker.process)], 30)
        wait_until(lambda: fleet.ready(worker), 10)
        time.sleep(0.5)
    assert traffic.failures == []
    assert any("," in entry["upstream"] for entry in fleet.access_log())


@pytest.mark.slow
def test_a_dead_supervisor_is_shown_and_mended(fleet: Live) -> None:
    """The one death that nobody repairs by himself: the orphan serves on, status says so, up mends it."""
    fleet.up(2)
    worker = fleet.worker(1)
    with fleet.load(users=4) as traffic:
        os.kill(worker.process.pid, signal.SIGKILL)
        wait_until(lambda: not Machine().alive(worker.process), 5)
        code, said = fleet.cli("status", "--json")
        states = {each["name"]: each["state"] for each in json.loads(said)["processes"]}
        assert code == 0 and states == {"worker-1": "unsupervised", "worker-2": "ready", "nginx": "ready"}
        assert "python -m fleet up" in fleet.cli("status")[1]
        code, said = fleet.cli("up")
        assert code == 0 and "Mended" in said
    assert traffic.failures == []
    assert not Machine().family(worker.process)
    assert fleet.ready(fleet.worker(1))


def test_a_worker_that_cannot_start_halts_the_change(fleet: Live) -> None:
    """scale with a broken setting: the reason is shown, what was started is stopped, the old fleet serves on."""
    fleet.up(2)
    before = fleet.fleet
    with fleet.load(users=4) as traffic:
        code, said = fleet.cli("scale", "4", env={"STUB_FAIL": "the weights are torn"})
    assert code == 6 and "the weights are torn" in said and "python -m fleet logs worker-" in said
    assert fleet.fleet == before
    wait_until(lambda: len(fleet.running(before)) == 7, 10)
    assert traffic.failures == []


@pytest.mark.slow
def test_a_roll_under_load_loses_nothing(fleet: Live) -> None:
    """Every worker is another process with the settings of now, under its old name, and no client notices."""
    fleet.up(3)
    before = fleet.fleet
    with fleet.load(users=8) as traffic:
        time.sleep(0.5)
        code, said = fleet.cli("roll", env={"KRONOS_LOG_LEVEL": "warning"})
        assert code == 0, said
        time.sleep(0.5)
    assert "KRONOS_LOG_LEVEL: (default) → warning" in said and "all 3 workers are new" in said
    assert traffic.failures == [] and set(traffic.shares()) == {"worker-1", "worker-2", "worker-3"}
    after = fleet.fleet
    assert [worker.name for worker in after.workers] == [worker.name for worker in before.workers]
    assert not {worker.process for worker in after.workers} & {worker.process for worker in before.workers}
    assert after.plan.settings["KRONOS_LOG_LEVEL"] == "warning"
    wait_until(lambda: len(fleet.running(after)) == 2 * 3 + 3, 10)
    assert [pid for worker in before.workers for pid in [worker.process.pid] if Machine().alive(worker.process)] == []


@pytest.mark.slow
def test_a_roll_of_bad_weights_halts_with_the_old_ones_serving(fleet: Live) -> None:
    """The reason, what to look at and what to type; nobody is stopped, nobody notices, and a good roll follows."""
    fleet.up(2)
    before = fleet.fleet
    with fleet.load(users=6) as traffic:
        code, said = fleet.cli("roll", env={"STUB_FAIL": "the weights are torn"})
        assert code == 14 and "the weights are torn" in said
        assert "logs worker-1-next" in said and "python -m fleet roll" in said
        assert "the weights are torn" in fleet.cli("logs", "worker-1-next")[1]
        assert fleet.fleet == before
        wait_until(lambda: len(fleet.running(before)) == 7, 10)
        assert fleet.cli("roll")[0] == 0
    assert traffic.failures == []


@pytest.mark.slow
def test_a_roll_interrupted_in_the_middle_is_completed_by_the_next(fleet: Live) -> None:
    """Ctrl-C after the first of three: a fleet of three serves, up says what is unfinished, another roll ends it."""
    fleet.up(3)
    with fleet.load(users=4) as traffic:
        with fleet.start_cli("roll", env={"STUB_START_S": "1.5"}) as process:
            wait_until(lambda: fleet.fleet.of_another_generation != [] and fleet.fleet.coming is not None, 30)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)[0]
        assert process.returncode == 130, said
        assert fleet.fleet.coming is None and len(fleet.fleet.of_another_generation) == 1
        assert "complete it with python -m fleet roll" in fleet.cli("up")[1]
        assert fleet.cli("roll")[0] == 0
    assert traffic.failures == [] and fleet.fleet.of_another_generation == []


def test_an_up_that_fails_leaves_nothing(fleet: Live) -> None:
    """The reason is shown, and everything that was started is stopped."""
    code, said = fleet.up(2, env={"STUB_FAIL": "no memory for the cache"})
    assert code == 6 and "no memory for the cache" in said
    assert not (fleet.run / "fleet.json").exists()
    assert Machine().port_holder("127.0.0.1", fleet.worker_port) is None


def test_ctrl_c_during_up_leaves_nothing(fleet: Live) -> None:
    """Interrupted while workers load: exit code 130 and no process."""
    with fleet.start_cli(*fleet.up_arguments(2), env={"STUB_START_S": "30"}) as process:
        wait_until(lambda: (fleet.run / "fleet.json").exists() and len(fleet.fleet.workers) == 2, 20)
        state = fleet.fleet
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert fleet.running(state) == [] and not (fleet.run / "fleet.json").exists()


def test_a_port_in_use_is_named(fleet: Live) -> None:
    """One sentence with the holder, one next command, nothing started."""
    with socket.create_server(("127.0.0.1", fleet.port)):  # also where a connection of another test just ended
        code, said = fleet.up(2)
    assert code == 4
    assert f"port {fleet.port} is in use by" in said and f"(pid {os.getpid()})" in said
    assert f"Next: python -m fleet up --port {fleet.port + 1}" in said
    assert not (fleet.run / "fleet.json").exists()


def test_a_second_up_is_safe(fleet: Live) -> None:
    """The same again says so and changes nothing; something else is refused with the verb that does it."""
    fleet.up(1)
    before = fleet.fleet
    code, said = fleet.cli("up")
    assert code == 0 and "Already up" in said
    code, said = fleet.cli("up", "--workers", "4")
    assert code == 12 and "python -m fleet scale 4" in said
    code, said = fleet.cli("up", "--port", "1")
    assert code == 12 and "python -m fleet down" in said
    assert fleet.fleet == before


@pytest.mark.slow
def test_two_verbs_at_once_are_refused(fleet: Live) -> None:
    """The second is told who is at work; the first is not disturbed."""
    with fleet.start_cli(*fleet.up_arguments(1), env={"STUB_START_S": "1.5"}) as process:
        wait_until(lambda: (fleet.run / "fleet.json").exists(), 20)
        code, said = fleet.cli("scale", "2")
        assert code == 8 and f"`fleet up` (pid {process.pid})" in said
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments, env, code, words",
    [
        (["status"], {}, 7, ["no fleet is up", "Next: python -m fleet up"]),
        (["scale", "3"], {}, 7, ["no fleet is up", "up --workers 3"]),
        (["predict", EXAMPLE], {}, 7, ["no fleet is up"]),
        (["logs"], {}, 7, ["no logs yet"]),
        (["up", "--workers", "0"], {}, 3, ["--workers 0 is not between 1 and 64"]),
        (["up", "--model", "nowhere/at/all"], {}, 5, ["the model nowhere/at/all is neither a folder nor a hub id"]),
        (["up", "--model", "tests"], {}, 5, ["has no config.json and no model.safetensors"]),
        (["roll"], {}, 7, ["no fleet is up", "Next: python -m fleet up"]),
        (["up", "--without", "grafana"], {}, 3, ["--without is not an option of --runtime local"]),
        (["status"], {"FLEET_RUNTIME": "swarm"}, 3, ["FLEET_RUNTIME=swarm is none of local, compose"]),
        (["up"], {"KRONOS_MODLE": "x"}, 3, ["KRONOS_MODLE: no such setting; did you mean KRONOS_MODEL?"]),
        (["up"], {"KRONOS_THREADS": "many"}, 3, ["KRONOS_THREADS"]),
        (["up", "--nginx", "/bin/false"], {"KRONOS_MODEL": "a/b", "KRONOS_TOKENIZER": "a/b"}, 9, ["/bin/false"]),
        (["predict", str(ROOT / ".gitignore"), "--url", "http://127.0.0.1:9"], {}, 11, ["has no column open, high, low, close"]),
        (["predict", EXAMPLE, "--url", "http://127.0.0.1:9"], {}, 10, ["nobody answers on http://127.0.0.1:9"]),
        (["predict", EXAMPLE, "--url", "127.0.0.1"], {}, 3, ["is not an address such as http://127.0.0.1:8080"]),
        (["predict", EXAMPLE, "--url", "http://127.0.0.1:9", "--out", "x.xls"], {}, 3, ["neither in .csv nor in .json"]),
        (["frobnicate"], {}, 2, ["invalid choice"]),
    ],
)
def test_each_mistake_has_one_clear_message(
    fleet: Live, arguments: list[str], env: dict[str, str], code: int, words: list[str]
) -> None:
    """What happened, the next command, an exit code of its own, and no traceback."""
    found, said = fleet.cli(*arguments, env=env)
    assert found == code, said
    assert all(word in " ".join(said.split()) for word in words), said
    assert "Traceback" not in said
