"""A real PostgreSQL for the tests, on a port of its own, in a folder that goes with it.

Knows: how to make, start, kill and stall one; root may not run it, so then the user ``postgres`` does. Does not know: tables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.kv_server import free_port
from tests.serving import until


def _program(name: str) -> str | None:
    """Debian keeps the server's programs beside the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(beside[-1]) if beside else None)


SERVER, INITDB = _program("postgres"), _program("initdb")
WHY_NOT = "" if SERVER and INITDB else "needs postgres and initdb (Debian package postgresql)"
USER, PASSWORD = "kronos", "open-sesame"
OWNER: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
SMALL = ["-c", "shared_buffers=16MB", "-c", "max_connections=20", "-c", "dynamic_shared_memory_type=mmap"]


@dataclass
class Database:
    """A server with the database ``postgres``. It keeps its data, so it can be killed and started again."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        if OWNER:
            shutil.chown(self.folder, "postgres")
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [INITDB or "", "-D", str(self.data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **OWNER)

    def start(self) -> None:
        command = [SERVER or "", "-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder), *SMALL]
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT, **OWNER)
        assert until(self._answers), (self.folder / "out").read_text()[-2000:]

    def kill(self) -> None:
        """No goodbye: all its processes at once, as when the machine goes."""
        self._signal(signal.SIGKILL)
        if self.process:
            self.process.wait()

    def stop(self) -> None:
        """As an operator would, so that nothing is left in shared memory."""
        self.resume()
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def stall(self) -> None:
        """Go on listening and answer nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(question).fetchall()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _signal(self, number: int) -> None:
        """To the server and the processes it has made."""
        if self.process and self.process.poll() is None:
            made = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            for pid in [self.process.pid, *map(int, made.split())]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def database() -> Iterator[Database]:
    """A server that runs, gone at the end, however it comes."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        running = Database(Path(folder))
        running.make()
        try:
            running.start()
            yield running
        finally:
            running.stop()
