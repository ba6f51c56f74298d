"""The measuring step as a plug-in: a runner takes a RunSpec and gives back what was printed.

Knows: how to run an executable and how it can fail to be one. Does not know: what the lines mean.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO, Protocol

from fleet.errors import BadSetting
from fleet.tune.protocol import RunSpec

PATIENCE_S = 120.0
"""What a run may take beyond its duration: scaling, getting ready, warming up, writing."""
MOST_BYTES = 256 << 20
"""More output than this is not a run."""
LAST_WORDS = 300
"""Characters of standard error that are worth keeping."""


@dataclass(frozen=True)
class RunResult:
    """Standard output, and why the run cannot be used ("" when the runner itself sees no reason)."""

    output: bytes
    failure: str = ""


class Runner(Protocol):
    """Anything that can do one run. It never raises for a run that went wrong: that is a RunResult with a failure."""

    def run(self, spec: RunSpec) -> RunResult:
        """Bring the fleet into the state the spec names, put the load on it, say what came of it."""


@dataclass(frozen=True)
class ExecRunner:
    """Any executable: the spec on its standard input, the protocol's lines on its standard output."""

    command: str
    patience_s: float = PATIENCE_S

    def run(self, spec: RunSpec) -> RunResult:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._start(out, err)
            failure = self._wait(process, spec)
            if not failure and process.returncode:
                failure = f"exit code {process.returncode}"
            if out.seek(0, os.SEEK_END) > MOST_BYTES:
                return RunResult(b"", f"it printed more than {MOST_BYTES >> 20} MiB")
            out.seek(0)
            return RunResult(out.read(), f"{failure}{_last_words(err)}" if failure else "")

    def _start(self, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
        argv = shlex.split(self.command)
        try:
            # its own session: what it has started ends with it
            return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True)
        except (OSError, IndexError) as error:
            raise BadSetting(f"the runner cannot be started: {error}", "give --runner exec:COMMAND that runs by itself") from None

    def _wait(self, process: subprocess.Popen[bytes], spec: RunSpec) -> str:
        limit = spec.duration_s + self.patience_s
        try:
            process.communicate(spec.to_json() + b"\n", timeout=limit)
        except subprocess.TimeoutExpired:
            return f"it did not end within {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return ""


def _last_words(err: IO[bytes]) -> str:
    size = err.seek(0, os.SEEK_END)
    err.seek(max(0, size - LAST_WORDS))
    words = " ".join(err.read().decode(errors="replace").split())
    return f": {words}" if words else ""
