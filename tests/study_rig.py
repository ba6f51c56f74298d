"""A small study of fleets whose speed is known: its plan, and runs of it as they are stored."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

from benchmarks.studies import onerun
from benchmarks.studies.clock import Sample, Usage
from benchmarks.studies.folder import POINTS, Begun, Folder, RunRecord
from benchmarks.studies.study import Fleet, Slot, Study, Variant, plan
from fleet.tune.raw import Origin

SLOW, FAST = Fleet("slow", 1, 0.5), Fleet("fast", 2, 0.5)
SMALL = Study(
    "small", "Is fast faster?", (SLOW, FAST),
    (
        Variant("slow", "slow", {"SCENARIO": "baseline", "VUS": "4"}),
        Variant("fast", "fast", {"SCENARIO": "baseline", "VUS": "4"}),
        Variant("fast-again", "fast", {"SCENARIO": "baseline", "VUS": "4"}, twin_of="fast"),
        Variant("long", "fast", {"SCENARIO": "sustained", "VUS": "4", "DURATION": "20s"}, once=True, slice_s=5.0),
    ),
    rounds=6, seconds=10, pairs=(("slow", "fast"),), prometheus=True, texts={"before.txt": "slow"},
)  # fmt: skip
ORIGIN = Origin("k6", "2026-11-21T14:00:00Z", {"python": "3"}, {"cores": 2})
BEGAN = datetime(2026, 11, 21, 14, tzinfo=UTC)
SERVICE_S = {"slow": 0.4, "fast": 0.2, "fast-again": 0.2, "long": 0.2}


def point(done_s: float, took_s: float, outcome: str = "right") -> bytes:
    """As k6 prints it; times with nine digits, in any zone."""
    moment = (BEGAN + timedelta(seconds=done_s)).isoformat(timespec="microseconds").replace("+00:00", "000Z")
    data = {"time": moment, "value": 1000 * took_s, "tags": {"outcome": outcome, "worker": "w"}}
    return (
        json.dumps({"metric": "kronos_request_duration", "type": "Point", "data": data}, separators=(",", ":")).encode() + b"\n"
    )


def dropped(at_s: float) -> bytes:
    return point(at_s, 0.001).replace(b"kronos_request_duration", b"dropped_iterations")


def closed_loop(users: int, service_s: float, seconds: float, jitter: float) -> list[bytes]:
    """Users who each wait ``service_s``, a little apart from each other."""
    made: list[bytes] = []
    for user in range(users):
        begun = user * service_s / users
        while begun < seconds:
            took = service_s * (1 + jitter * ((len(made) * 7) % 10))
            made.append(point(begun + took, took))
            begun += took
    return made


def make_run(folder: Folder, slot: Slot) -> RunRecord:
    """A run as ``onerun.measure`` stores it, of a fleet whose speed is known; rounds differ a little."""
    seconds, draft = SMALL.seconds_of(slot.variant), folder.draft(slot.id)
    lines = closed_loop(4, SERVICE_S[slot.variant.name] * (1 + slot.round / 200), seconds, 0.01)
    (draft / POINTS).write_bytes(gzip.compress(b"".join(lines), mtime=0))
    (draft / "summary.txt").write_text(f"k6 on {slot.id}\n")
    workers = SMALL.fleet_of(slot.variant).workers
    samples = [
        Sample(at, at, at / 10, {f"worker-{number}": Usage(at / 4, 10 * at, 5 * at, 1e8 + at) for number in range(workers)})
        for at in onerun.moments(seconds, slot.variant.slice_s)
    ]
    answers = {"sum(kronos_queue_depth) by (instance)": {'{instance="a"}': "3"}}
    dials = SMALL.dials_of(slot, "http://127.0.0.1:1")
    begun = f"2026-11-21T14:{plan(SMALL).index(slot):02d}:00Z"
    record = RunRecord(slot.id, slot.round, slot.variant.name, dials, begun, seconds, 0, "every threshold held", samples, answers)
    folder.keep(draft, record)
    return record


def measured(folder: Folder) -> Folder:
    """The study, measured to its end."""
    folder.path.mkdir(exist_ok=True)
    folder.begin(Begun(SMALL, ORIGIN))
    for slot in plan(SMALL):
        make_run(folder, slot)
    return folder
