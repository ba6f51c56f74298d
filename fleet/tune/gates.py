"""Whether a run may be used: judged on its second half, which has to be steady whatever the warm-up was.

Knows: what makes a run invalid, and when missing the objective explains what looks like a fault. Does not know: other runs.

Three verdicts. *valid*: a steady state was seen. *overloaded*: the requests that were answered already miss the objective while
the queue grows or the generator runs out of users; that is a measurement of a fleet that is too small. *invalid*: it says
nothing about the fleet; it is repeated, or reported.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from fleet.tune.objective import Objective
from fleet.tune.protocol import End, Floats, Points
from fleet.tune.raw import Record

GENERATOR_CPU = 0.9
"""Above it the generator measures itself."""
ACHIEVED = 0.99
LITTLE = 0.05
USERS_BUSY = 0.9
"""Of closed-loop users, the share that waits for an answer; users that wait in the generator make it the limit."""
GROWTH = 0.05
"""Of the arrivals of the second half, the share that the queue kept."""
DRIFT = {"open": 1.5, "closed": 1.1}
"""Third to fourth quarter: ratio of mean latencies (open), of throughputs (closed)."""
DRIFT_T = 4.0
BATCHES = 5
SIGMAS = 3.0


class Verdict(msgspec.Struct, frozen=True):
    """``reasons`` is empty for a valid run."""

    kind: Literal["valid", "overloaded", "invalid"]
    reasons: tuple[str, ...] = ()
    generator: bool = False

    @property
    def usable(self) -> bool:
        return self.kind != "invalid"


def judge(record: Record, objective: Objective) -> Verdict:
    """One run, by itself."""
    points, end = record.points, record.end
    if points is None or end is None:
        return Verdict("invalid", (record.failure,))
    if end.cpu.generator is not None and end.cpu.generator >= GENERATOR_CPU:
        return Verdict("invalid", (f"generator used {end.cpu.generator:.0%} of its CPU",), generator=True)
    late = points.due >= end.duration_s / 2
    if late.sum() < 2 * BATCHES:
        return Verdict("invalid", (f"only {late.sum()} requests in the second half",))
    if record.spec.mode == "closed":
        return _closed(points, end, record.spec.vus or 1)
    faults = [*_sending(points, end, record.spec.rate or 0.0), *_unsteady(points, end)]
    if not faults:
        return Verdict("valid")
    reasons = tuple(reason for reason, _ in faults)
    right = np.where(points.ok, points.latency, math.inf)[late]
    if float(np.quantile(right, objective.share, method="inverted_cdf")) > objective.seconds:
        return Verdict("overloaded", reasons)
    return Verdict("invalid", reasons, generator=any(by_generator for _, by_generator in faults))


def _sending(points: Points, end: End, rate: float) -> list[tuple[str, bool]]:
    """What the generator did not send."""
    faults = []
    if end.dropped:
        faults.append((f"{end.dropped} arrivals dropped", True))
    wanted = rate * end.duration_s
    gaps = np.diff(points.due)
    irregular = float(gaps.std() / gaps.mean()) if gaps.mean() > 0 else 0.0
    sent = (len(points.due) + end.dropped) / wanted
    if sent < ACHIEVED - SIGMAS * irregular / math.sqrt(wanted):
        faults.append((f"sent {sent:.1%} of the arrivals asked for", True))
    return faults


def _unsteady(points: Points, end: End) -> list[tuple[str, bool]]:
    """Open loop: the queue grows, latency moves, or Little's law does not hold."""
    half, whole = end.duration_s / 2, end.duration_s
    done = points.due + points.latency
    arrived = float(((points.due >= half) & (points.due < whole)).sum())
    kept = (in_flight_at(points, whole) - in_flight_at(points, half)) / arrived
    faults = []
    if kept > GROWTH:
        faults.append((f"the queue kept {kept:.0%} of the arrivals", False))
    moved = drift(points.due, points.latency, end.duration_s)
    if abs(moved) > math.log(DRIFT["open"]):
        faults.append((f"latency moved by {math.expm1(moved):+.0%} within the second half", False))
    late = (points.due >= half) & (points.due < whole)
    spent = float(points.latency[late].sum())
    under_way = float(np.clip(np.minimum(done, whole) - np.maximum(points.due, half), 0, None).sum())
    slack = LITTLE + 2 * float(points.latency[late].max(initial=0.0)) / max(spent, 1e-12)
    if abs(under_way / max(spent, 1e-12) - 1) > slack:
        faults.append((f"Little's law is off by {under_way / max(spent, 1e-12) - 1:+.0%}", False))
    return faults


def _closed(points: Points, end: End, users: int) -> Verdict:
    half = end.duration_s / 2
    done = points.due + points.latency
    busy = float(np.clip(np.minimum(done, end.duration_s) - np.maximum(points.due, half), 0, None).sum()) / half / users
    if busy < USERS_BUSY:
        return Verdict("invalid", (f"only {busy:.0%} of the users were waiting for the fleet",), generator=True)
    moved = drift(done, np.ones(len(done)), end.duration_s, count=True)
    if abs(moved) > math.log(DRIFT["closed"]):
        return Verdict("invalid", (f"throughput moved by {math.expm1(moved):+.0%} within the second half",))
    return Verdict("valid")


def in_flight_at(points: Points, moment: float) -> float:
    """Requests under way."""
    return float(((points.due <= moment) & (points.due + points.latency > moment)).sum())


def drift(when: Floats, values: Floats, duration_s: float, count: bool = False) -> float:
    """Log ratio of the fourth to the third quarter, by the means (or the numbers) in batches; 0 when noise explains it."""
    edges = np.linspace(duration_s / 2, duration_s, 2 * BATCHES + 1)
    numbers, _ = np.histogram(when, edges)
    sums, _ = np.histogram(when, edges, weights=values)
    means = numbers.astype(float) if count else sums / np.maximum(numbers, 1)
    if (means <= 0).any():
        return 0.0
    third, fourth = np.log(means[:BATCHES]), np.log(means[BATCHES:])
    error = math.sqrt((third.var(ddof=1) + fourth.var(ddof=1)) / BATCHES)
    moved = float(fourth.mean() - third.mean())
    return moved if abs(moved) > DRIFT_T * error else 0.0
