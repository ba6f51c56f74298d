"""What tests of the load scripts share: a k6, a server to load, one short run.

Knows: processes and how a k6 run is read. Does not know: what should come out.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.k6 import ROOT

SCRIPT = "tests/load/baseline.js"
PLAIN = ("--quiet", "--no-usage-report", "--include-system-env-vars=false")
SHORT = {"DURATION": "1s", "VUS": "2", "LOOKBACK": "20", "HORIZON": "6", "SAMPLES": "3"}
START_TIMEOUT_S = 20


def free_port() -> int:
    """A port that nobody holds now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def standing_in() -> Iterator[str]:
    """The address of ``tests.load.stand_in``, in a process of its own."""
    port = free_port()
    quiet = ("--no-access-log", "--log-level", "warning")
    argv = [sys.executable, "-m", "uvicorn", "tests.load.stand_in:app", "--port", str(port), *quiet]
    with subprocess.Popen(argv, cwd=ROOT) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + START_TIMEOUT_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise TimeoutError("the stand-in did not start")
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def seen(url: str) -> dict[str, int]:
    """Requests that the stand-in has had, by path."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        counts: dict[str, int] = json.load(answer)
    return counts


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code, what it said, summary.json (empty when there is none)."""

    code: int
    said: str
    summary: dict[str, Any]

    def value(self, metric: str, statistic: str) -> float:
        """One number of the summary."""
        return float(self.summary["metrics"][metric]["values"][statistic])


def run_k6(k6: Path, folder: Path, url: str, **dials: str) -> Outcome:
    """One run to its end."""
    given = {"BASE_URL": url, "OUT": str(folder), **dials}
    arguments = [argument for name, value in given.items() for argument in ("-e", f"{name}={value}")]
    done = subprocess.run([k6, "run", *PLAIN, *arguments, SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    path = folder / "summary.json"
    return Outcome(done.returncode, done.stdout + done.stderr, json.loads(path.read_text()) if path.exists() else {})
