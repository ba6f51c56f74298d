"""The folder of a campaign: raw runs as they were printed, compressed and hashed. It is the only state there is.

Knows: files, hashes, what a record is. Does not know: what a run says.

A run's file is its head (slot, spec, when), the runner's lines byte for byte, and its foot (why it cannot be used). It counts
once its hash is in SHA256SUMS, so that a run that was interrupted while it was written was never there.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleet.errors import BadSetting
from fleet.tune.plan import Plan, Slot
from fleet.tune.protocol import End, Misbehaved, Points, RunSpec, parse
from fleet.tune.runner import RunResult


class Head(msgspec.Struct, frozen=True):
    """First line of a run's file. ``begun`` is UTC."""

    slot: Slot
    attempt: int
    spec: RunSpec
    begun: str


class Foot(msgspec.Struct, frozen=True):
    """Last line of a run's file. ``failure`` is what the runner itself saw ("" = nothing)."""

    failure: str


@dataclass(frozen=True)
class Record:
    """One attempt at one slot; ``points`` and ``end`` are None when ``failure`` says why there are none."""

    slot: Slot
    attempt: int
    spec: RunSpec
    points: Points | None
    end: End | None
    failure: str = ""
    begun: str = ""
    sha256: str = ""


class Origin(msgspec.Struct, frozen=True):
    """Where a campaign was measured: the runner, versions of what matters, the machine."""

    runner: str
    begun: str
    versions: dict[str, str]
    machine: dict[str, str | int | float]


class Campaign(msgspec.Struct, frozen=True):
    """plan.json. ``price`` is per worker-hour; it decides nothing that is measured."""

    name: str
    plan: Plan
    origin: Origin
    price: float | None = None


def read(head: Head, output: bytes, failure: str, sha256: str = "") -> Record:
    """What a runner printed, understood or refused."""
    points = end = None
    if not failure:
        try:
            points, end = parse(output.splitlines(), head.spec.duration_s)
        except Misbehaved as misbehaved:
            failure = str(misbehaved)
    return Record(head.slot, head.attempt, head.spec, points, end, failure, head.begun, sha256)


@dataclass(frozen=True)
class Folder:
    """``reports/DATE-NAME``."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def sums(self) -> Path:
        return self.runs / "SHA256SUMS"

    def begin(self, campaign: Campaign) -> None:
        """Write the plan down before anything is measured."""
        self.runs.mkdir(parents=True, exist_ok=True)
        self.write("plan.json", msgspec.json.format(msgspec.json.encode(campaign), indent=2) + b"\n")
        self.sums.touch()

    def campaign(self) -> Campaign:
        """Raises BadSetting when there is none."""
        try:
            return msgspec.json.decode((self.path / "plan.json").read_bytes(), type=Campaign)
        except (OSError, msgspec.MsgspecError) as error:
            raise BadSetting(f"{self.path} holds no campaign: {error}", "python -m fleet tune makes one") from None

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        part = self.path / f".{name}.part"
        part.write_bytes(content)
        os.replace(part, self.path / name)

    def add(self, number: int, head: Head, result: RunResult) -> Record:
        """Store a run and read it back as everybody will read it later."""
        body = result.output if result.output.endswith(b"\n") or not result.output else result.output + b"\n"
        text = msgspec.json.encode(head) + b"\n" + body + msgspec.json.encode(Foot(result.failure)) + b"\n"
        content = gzip.compress(text, mtime=0)
        name = f"{number:04d}-{head.slot.id}-a{head.attempt}.jsonl.gz"
        (self.runs / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        with self.sums.open("a") as sums:
            sums.write(f"{digest}  {name}\n")
        return read(head, body, result.failure, digest)

    def records(self) -> list[Record]:
        """All runs in the order in which they were made. Raises BadSetting when a file is not what it was."""
        records = []
        for line in self.sums.read_text().splitlines():
            digest, _, name = line.partition("  ")
            file = self.runs / name
            content = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise BadSetting(f"{file} is not what was measured (SHA256SUMS)", "bring the raw data back, or measure again")
            first, _, rest = gzip.decompress(content).partition(b"\n")
            output, _, last = rest.rstrip(b"\n").rpartition(b"\n")
            foot = msgspec.json.decode(last, type=Foot)
            records.append(read(msgspec.json.decode(first, type=Head), output, foot.failure, digest))
        return records
