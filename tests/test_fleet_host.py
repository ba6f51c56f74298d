"""The layer that touches the machine, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet import proc
from fleet.errors import Busy
from fleet.host import CommandFailed, Machine, wait
from fleet.state import Folders, Process, locked
from tests.fleet.live import wait_until

# A leader with one child, as gunicorn has its worker.
FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Process]:
    log = tmp_path / "logs" / "leader.log"
    leader = Machine().spawn([sys.executable, "-c", FAMILY], os.environ, log)
    wait_until(lambda: "up" in Machine().read_log(log), 20)
    yield leader
    for member in Machine().family(leader):
        Machine().signal(member, signal.SIGKILL)
    os.waitpid(leader.pid, 0)


def test_a_spawned_process_leads_a_session_of_its_own(family: Process) -> None:
    """No Ctrl-C at the terminal reaches it, and its children are found by the session."""
    assert os.getsid(family.pid) == family.pid != os.getsid(0)
    members = Machine().family(family)
    assert members[0] == family and len(members) == 2
    assert all(proc.pss_bytes(member.pid) > 0 for member in members)


def test_children_are_found_after_their_leader_died(family: Process) -> None:
    """An orphan is still the fleet's: it can be seen, counted and stopped. A zombie is not alive."""
    child = Machine().family(family)[1]
    os.kill(family.pid, signal.SIGKILL)
    wait_until(lambda: not Machine().alive(family), 10)
    seen = proc.stat(family.pid)
    assert seen is not None and seen.state == "Z"  # nobody has waited for it yet
    assert Machine().family(family) == [child]


def test_a_stopped_process_is_alive(family: Process) -> None:
    """SIGSTOP is not death: a hung worker must be stopped, not forgotten."""
    os.kill(family.pid, signal.SIGSTOP)
    wait_until(lambda: (seen := proc.stat(family.pid)) is not None and seen.state == "T", 10)
    assert Machine().alive(family) and len(Machine().family(family)) == 2


def test_a_reused_pid_is_another_process(family: Process) -> None:
    """A pid with another start is not ours: not alive, no family, no signal."""
    stranger = replace(family, started=family.started - 1)
    assert not Machine().alive(stranger) and Machine().family(stranger) == []
    Machine().signal(stranger, signal.SIGKILL)
    time.sleep(0.1)
    assert Machine().alive(family)


def test_a_file_is_replaced_whole_and_is_private(tmp_path: Path) -> None:
    """A reader sees the old or the new text; settings in it are nobody else's."""
    path = tmp_path / "run" / "fleet.json"
    Machine().write(path, "one")
    Machine().write(path, "two")
    assert path.read_text() == "two" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_program_tells_what_it_said() -> None:
    """Its own sentence reaches the operator."""
    with pytest.raises(CommandFailed, match="no such thing"):
        Machine().call([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


def test_the_holder_of_a_port_is_named() -> None:
    """With its pid, so that the operator knows whom to ask."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"(pid {os.getpid()})" in str(Machine().port_holder("127.0.0.1", port))
    assert Machine().port_holder("127.0.0.1", port) is None
    assert Machine().get("127.0.0.1", port, "/healthz") is None


@pytest.mark.parametrize("true_at, timeout, expected, looks", [(0.0, 0.0, True, 1), (0.25, 1.0, True, 4), (9.0, 0.3, False, 4)])
def test_waiting_looks_until_it_is_true_or_too_late(true_at: float, timeout: float, expected: bool, looks: int) -> None:
    """At least one look, ten a second, none after the end."""
    clock = [0.0]
    seen: list[float] = []

    def check() -> bool:
        seen.append(clock[0])
        return clock[0] >= true_at

    def sleep(seconds: float) -> None:
        clock[0] = round(clock[0] + seconds, 6)

    assert wait(check, timeout, lambda: clock[0], sleep) is expected
    assert len(seen) == looks


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """Two verbs never change one fleet at once; a dead one blocks nobody."""
    folders = Folders(tmp_path, tmp_path / ".run")
    with (
        locked(folders, "up"),
        pytest.raises(Busy, match=rf"`fleet up` \(pid {os.getpid()}\)"),
        locked(folders, "down"),
    ):
        pass
    with locked(folders, "down"):
        pass
