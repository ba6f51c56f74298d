"""A real S3 server for the tests: versitygw over a folder, a program of its own, on a free port of 127.0.0.1.

Like k6 it is built with Go from a pinned version, once: ``python -m tests.s3_server`` does it and prints where it is. The pin
is ``tests/s3/go.mod``, with the hash of every module in ``go.sum`` beside it.
Knows: how to build, start, stop and stall one. Does not know: what it is used for.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet.k6 import without_direct
from tests.kv_server import free_port
from tests.serving import until

ROOT: Final = Path(__file__).resolve().parents[1]
MODULE: Final = ROOT / "tests" / "s3"
PACKAGE: Final = "github.com/versity/versitygw"
BUCKET: Final = "bucket"
KEY, SECRET = "tester", "testers-secret"


def pinned() -> str:
    """The version that go.mod requires."""
    found = re.search(rf"^\s*(?:require )?{re.escape(PACKAGE)} (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    assert found, "go.mod requires no versitygw"
    return found[1]


BUILT: Final = ROOT / ".cache" / "s3" / f"versitygw-{pinned()}"
PROGRAM: Final = str(BUILT) if BUILT.exists() else shutil.which("versitygw")
WHY_NOT = "" if PROGRAM else "needs versitygw: `python -m tests.s3_server` builds it with Go, once"


def build() -> Path:
    """Compile the pinned version into the cache. Raises CalledProcessError."""
    if not BUILT.exists():
        proxy = subprocess.run(["go", "env", "GOPROXY"], capture_output=True, text=True, check=True).stdout
        environment = {**os.environ, "GOPROXY": without_direct(proxy), "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0"}
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        draft = BUILT.with_suffix(f".{os.getpid()}")
        argv = ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(draft)]
        subprocess.run([*argv, f"{PACKAGE}/cmd/versitygw"], cwd=MODULE, env=environment, check=True)
        draft.replace(BUILT)
    return BUILT


@dataclass
class S3Server:
    """A running server; its buckets are folders below ``folder``."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        }  # fmt: skip

    def stall(self) -> None:
        """Go on listening and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again, on the same port over the same buckets."""
        self.process = _start(self.port, self.folder)


def _start(port: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    command = [PROGRAM or "", "--port", f"127.0.0.1:{port}", "posix", "--sidecar", str(folder / "meta"), str(folder / "buckets")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert until(lambda: _answers(port)), "the S3 server does not listen"
    return process


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server of one's own with one bucket, gone at the end, however it comes."""
    for name in ("meta", f"buckets/{BUCKET}"):
        (folder / name).mkdir(parents=True)
    port = free_port()
    server = S3Server(port, folder, _start(port, folder))
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    print(build())
