"""``fleet tune`` at work: a folder, a runner, and the rounds between them; interrupted and resumed at any moment.

Knows: what is written when, progress, where and with what a campaign was measured. Does not know: which rounds there are.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil

from fleet.errors import BadSetting
from fleet.tune import campaign as campaigns
from fleet.tune import plan as planning
from fleet.tune.analyst import Analyst
from fleet.tune.plan import Plan, Slot
from fleet.tune.raw import Campaign, Folder, Head, Origin, Record
from fleet.tune.runner import Runner
from fleet.tune.summary import Written

FIRST_FAILURES = 2
"""So many places in the plan given up before anything worked: the runner is wrong, not the fleet."""
LIBRARIES = ("msgspec", "numpy", "scipy", "matplotlib")
PREDICTIONS = "predictions.json"


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def origin(runner: str, root: Path) -> Origin:
    """This machine, now."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, "commit": commit(root)}
    machine: dict[str, str | int | float] = {
        "cpu": cpu_name(), "cores": os.cpu_count() or 1, "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }  # fmt: skip
    return Origin(runner, now(), versions, machine)


def commit(root: Path) -> str:
    """Of the repository; "" outside of one."""
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip()


def cpu_name() -> str:
    """In the words of /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def open_folder(path: Path, wanted: Campaign) -> tuple[Folder, Campaign]:
    """A new campaign, or the one that was begun there. Raises BadSetting when that one is different."""
    folder = Folder(path)
    if not (path / "plan.json").exists():
        folder.begin(wanted)
        return folder, wanted
    there = folder.campaign()
    for what, old, new in (
        ("plan", there.plan, wanted.plan), ("runner", there.origin.runner, wanted.origin.runner),
        ("machine", there.origin.machine, wanted.origin.machine),
    ):  # fmt: skip
        if old != new:
            raise BadSetting(f"{path} holds a campaign with another {what}", "give this one another --name")
    return folder, there


@dataclass
class Session:
    """Measures what is missing; ``say`` gets one line for people at each step."""

    folder: Folder
    campaign: Campaign
    runner: Runner
    say: Callable[[str], None]

    @property
    def plan(self) -> Plan:
        return self.campaign.plan

    def go_on(self) -> list[Record]:
        """All records, when nothing is missing any more. Raises BadSetting when the runner never works."""
        records = self.folder.records()
        if records:
            self.say(f"Going on after {len(records)} runs in {self.folder.path}")
        analyst, began, done = Analyst(self.plan), time.monotonic(), len(records)
        for record in campaigns.go_on(analyst, records, self.measure, lambda slots: self.before(slots, analyst, records)):
            verdict = analyst.verdict(record)
            note = "" if verdict.kind == "valid" else f": {verdict.kind}, {'; '.join(verdict.reasons)}"
            each = (time.monotonic() - began) / (len(records) - done)
            self.say(f"{len(records):4d}  {record.slot.id}{note}  ({each:.1f} s a run)")
            self.give_up(records)
        return records

    def measure(self, slot: Slot, attempt: int) -> Record:
        """One run, stored."""
        spec = planning.spec(self.plan, slot, attempt)
        head = Head(slot, attempt, spec, now())
        number = len(self.folder.sums.read_text().splitlines()) + 1
        return self.folder.add(number, head, self.runner.run(spec))

    def before(self, slots: Sequence[Slot], analyst: Analyst, records: Sequence[Record]) -> None:
        """Announce a round; before the first held-out run the prediction goes to disk."""
        stage = slots[0].stage
        self.say(f"Round {slots[0].round + 1}: {stage}, {len(slots)} runs")
        if stage != "held-out" or (self.folder.path / PREDICTIONS).exists():
            return
        before = [record for record in records if record.slot.stage == "sweep"]
        predicted = [(dict(settings), one) for settings, one in analyst.predictions(before)]
        written = Written(now(), [record.sha256 for record in before], predicted)
        self.folder.write(PREDICTIONS, msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
        for _, one in predicted:
            if one is not None:
                self.say(f"Predicted for {one.workers} workers: {one.quantile:.3f} s [{one.low:.3f}, {one.high:.3f}]")

    def give_up(self, records: Sequence[Record]) -> None:
        """A runner that has not worked once, however often it was asked, will not."""
        broken = [record for record in records if record.failure]
        if len(broken) == len(records) >= FIRST_FAILURES * self.plan.attempts:
            raise BadSetting(f"the runner does not work: {broken[-1].failure}", f"see {self.folder.runs}, try it by itself")


def written(folder: Folder) -> Written | None:
    """The prediction that was written down, if there was one."""
    path = folder.path / PREDICTIONS
    return msgspec.json.decode(path.read_bytes(), type=Written) if path.exists() else None
