"""One run of k6 against one fleet, with everything kept that it and the fleet say.

Knows: how k6 is started, watched and ended, when the clocks are read. Does not know: what the figures are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.studies import prometheus
from benchmarks.studies.clock import Clock, Sample
from benchmarks.studies.fleets import Up, services
from benchmarks.studies.folder import POINTS, Folder, RunRecord, store_points
from benchmarks.studies.study import START_S, Slot, Study, warm_up_s
from fleet import load
from fleet.errors import LoadFailed
from fleet.k6 import ROOT
from fleet.tune.served import GOOD_CODES
from fleet.tune.session import now

PATIENCE_S = 90.0
"""What k6 may take beyond the time in which it begins requests."""
WARM_S = 5.0
SAID = "said.txt"
LAST_S = 1.5
"""So long before the end the clocks are read for the last time: that takes up to a second, and k6 must still be there."""
ASKED_BEFORE_S = 2.0
"""So long before the last reading of the clocks Prometheus is asked: while the load is on."""


def moments(seconds: float, slice_s: float) -> list[float]:
    """When the clocks are read, in seconds after k6 was started: at both edges of the steady window, and between slices."""
    first, last = START_S + warm_up_s(seconds), START_S + seconds - LAST_S
    between = [START_S + slice_s * number for number in range(int(seconds / slice_s))] if slice_s else []
    return sorted({first, *between, last})


class Watch(threading.Thread):
    """Reads the clocks while k6 runs, and asks Prometheus at the end of the load."""

    def __init__(self, up: Up, generator: psutil.Process, when: Sequence[float], asks: bool) -> None:
        super().__init__(daemon=True)
        self.clock, self.generator, self.when = Clock(up.project, services(up.fleet)), generator, when
        self.url = up.url if asks else ""
        self.begun, self.ended = time.monotonic(), threading.Event()
        self.samples: list[Sample] = []
        self.answers: dict[str, dict[str, str]] = {}

    def run(self) -> None:
        for moment in self.when:
            if self.url and moment == self.when[-1] and self._wait(moment - ASKED_BEFORE_S):
                self.answers = prometheus.ask(self.url)
            if self._wait(moment):
                with suppress(subprocess.SubprocessError, psutil.NoSuchProcess):  # a run without a reading is a run all the same
                    self.samples.append(self.clock.sample(self.begun, self.generator))

    def _wait(self, moment: float) -> bool:
        """Until then; False when k6 has ended before."""
        return not self.ended.wait(max(0.0, self.begun + moment - time.monotonic()))


def measure(study: Study, slot: Slot, up: Up, k6: Path, folder: Folder) -> RunRecord:
    """Make the run and store it. Raises LoadFailed when k6 cannot, with nothing stored; so does any interruption."""
    draft = folder.draft(slot.id)
    dials, seconds = study.dials_of(slot, up.url), study.seconds_of(slot.variant)
    begun, started = now(), time.monotonic()
    with running(k6, dials, draft) as process:
        watch = Watch(up, psutil.Process(process.pid), moments(seconds, slot.variant.slice_s), study.prometheus)
        watch.start()
        try:
            code = finish(process, seconds)
        finally:
            watch.ended.set()
            watch.join()
    taken = round(time.monotonic() - started, 1)
    if code not in GOOD_CODES:
        raise LoadFailed(f"{slot.id}: {load.meaning(code)}", f"read {draft / SAID}; the same command goes on")
    store_points(draft / load.POINTS, draft / POINTS)
    (draft / load.POINTS).unlink()
    (draft / SAID).unlink()  # the summary is there twice, and the rest is a progress bar
    said = watch.samples, watch.answers
    record = RunRecord(slot.id, slot.round, slot.variant.name, dials, begun, taken, code, load.meaning(code), *said)
    folder.keep(draft, record)
    return record


def warm(up: Up, k6: Path) -> None:
    """A short run of the plainest load; nothing of it is kept."""
    dials = {"SCENARIO": "baseline", "BASE_URL": up.url, "DURATION": f"{WARM_S:g}s"}
    with tempfile.TemporaryDirectory() as folder, running(k6, dials, Path(folder)) as process:
        finish(process, WARM_S)


@contextmanager
def running(k6: Path, dials: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """k6, of which nothing is left after the block. In a session of its own: Ctrl-C is for us. What it prints goes to a file."""
    run = load.Run(str(k6), dials, str(folder), dashboard=False)
    with (folder / SAID).open("wb") as said:
        process = subprocess.Popen(
            run.argv(), env=run.env(os.environ), cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen[bytes], seconds: float) -> int:
    """k6's exit code, or that of a k6 that was killed when it does not end."""
    try:
        return process.wait(seconds + PATIENCE_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
