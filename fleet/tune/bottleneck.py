"""What keeps the largest measured fleet from being faster, with the evidence in the order in which it was weighed.

Knows: what each limit leaves behind in throughput, CPU and refusals. Does not know: how to remove it.

  generator   its CPU, dropped arrivals, or users that wait in it: the fleet was not measured
  host        all cores busy and throughput stands still: more workers cannot help on this host
  neighbours  all cores busy, and not with this fleet: something else runs on the host, and nothing can be said
  crosstalk   workers use their CPU, each of them gets less done the more there are
  serial      workers wait (their CPU is not used up) with requests inside them: something is done one at a time
  front       workers wait with requests outside of them: a limit before the workers (proxy, network). Where the runner does not
              say where requests are, a hard ceiling of throughput is taken for one, a bend for the other
  queue       requests are refused although the workers could carry the rate
  workers     throughput grows with every worker: they are the limit, more of them help
  quota       the same, and what each of them lacks is CPU that its quota does not give
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from fleet.tune.evidence import Evidence
from fleet.tune.laws import Law
from fleet.tune.statistics import Interval, mean_interval

EFFICIENT = 0.85
"""Throughput per worker, largest against smallest count; above it there is nothing to explain."""
BUSY = 0.85
"""Share of a worker's quota, or of the host, that counts as used up."""
GROWS = 0.25
"""Elasticity of throughput at the top: below it another worker brings less than a quarter of its share."""
CLEARLY = 1.15
"""Times the count at which a ceiling is reached: beyond it another worker brings nothing."""
REFUSED = 0.005
THROTTLED = 0.5
"""Share of the quota's periods in which it ran out, above which it is what the workers lack."""
OWN = 0.5
"""Share of a full host's CPU that workers and generator use, below which it is somebody else's."""
OUTSIDE = 0.5
"""Share of a request's time that is spent outside of the workers, above which they are not what it waits for."""


class Bottleneck(msgspec.Struct, frozen=True):
    """``verdict`` is a word of the list above, or "unknown". ``more_workers_help``: None when undecided."""

    verdict: str
    more_workers_help: bool | None
    evidence: tuple[str, ...]


def find(evidence: Evidence, law: Law | None) -> Bottleneck:
    """At the largest count that was measured at saturation."""
    blamed = [judged for judged in evidence.refused if judged.verdict.generator]
    tried = {judged.slot.id for judged in evidence.attempts}
    lost = {slot.id for slot in evidence.given_up} & {judged.slot.id for judged in blamed}
    counts = evidence.counts("closed")
    if lost and (len(lost) * 4 >= len(tried) or not counts):
        reasons = dict.fromkeys(f"{judged.slot.id}: {judged.verdict.reasons[0]}" for judged in blamed)
        spoilt = f"the generator spoilt {len(lost)} of {len(tried)} places in the plan"
        return Bottleneck("generator", None, (spoilt, *list(reasons)[:4]))
    if not counts or law is None:
        return Bottleneck("unknown", None, ("too few valid runs at saturation",))
    chain = []
    if refusing := _refusals(evidence):
        chain.append(refusing)
    per_worker = {count: _throughput(evidence, count) / count for count in counts}
    efficiency = per_worker[counts[-1]] / per_worker[counts[0]]
    left = f"from {counts[0]} to {counts[-1]} workers {efficiency:.0%} of the throughput per worker is left"
    chain.append(f"{left} ({law.family} law)")
    helps, growth = _growth(evidence, counts)
    if growth:
        chain.append(growth)
    figures = evidence.figures("closed", counts[-1])
    if efficiency >= EFFICIENT:
        return Bottleneck("queue" if refusing else _lacking(figures, chain), True, tuple(chain))
    return _loss(figures, counts[-1], law, helps, chain)


def _lacking(figures: Mapping[str, float], chain: list[str]) -> str:
    """What workers that scale have too little of."""
    throttled = figures.get("throttled")
    if throttled is None:
        return "workers"
    chain.append(f"the CPU quota ran out in {throttled:.0%} of its periods")
    return "quota" if throttled >= THROTTLED else "workers"


def _loss(figures: Mapping[str, float], count: int, law: Law, helps: bool | None, chain: list[str]) -> Bottleneck:
    """Throughput per worker falls: whose fault is it?"""
    host, worker = figures.get("host"), figures.get("worker")
    if host is not None:
        chain.append(f"host CPU {host:.0%} at {count} workers")
    if worker is not None:
        chain.append(f"worker CPU {worker:.0%} of its quota at {count} workers")
    if law.family == "ceiling" and (enough := law.parameters["ceiling"].value / law.parameters["per_worker"].value) < count:
        chain.append(f"throughput stops growing at {enough:.1f} workers")
        helps = False if count >= CLEARLY * enough else helps
    if host is not None and host >= BUSY:
        own = figures.get("fleet", host) + figures.get("generator", 0.0)
        if own < OWN * host:
            chain.append(f"workers and generator use {own:.0%} of the host, something else the rest")
            return Bottleneck("neighbours", None, tuple(chain))
        if helps is False:
            chain.append("more workers cannot help on this host")
        return Bottleneck("host", helps, tuple(chain))
    if worker is None:
        shape = {"amdahl": "serial", "usl": "crosstalk" if _positive(law, "kappa") else "serial"}.get(law.family, "unknown")
        chain.append("by the law alone: without CPU figures a full host looks the same")
        return Bottleneck(shape, helps, tuple(chain))
    if worker >= BUSY:
        return Bottleneck("crosstalk", helps, tuple(chain))
    return Bottleneck(_waiting(figures, law, chain), helps, tuple(chain))


def _waiting(figures: Mapping[str, float], law: Law, chain: list[str]) -> str:
    """Workers have CPU left: are the requests with them, or not yet?"""
    inside, outside = figures.get("inside_s"), figures.get("outside_s")
    if inside is None or outside is None:
        return "front" if law.family == "ceiling" else "serial"
    share = outside / max(inside + outside, 1e-9)
    chain.append(f"{share:.0%} of a request's time is spent outside of the workers")
    return "front" if share >= OUTSIDE else "serial"


def _positive(law: Law, name: str) -> bool:
    return name in law.parameters and law.parameters[name].low > 0


def _throughput(evidence: Evidence, workers: int) -> float:
    return float(np.exp(np.log(evidence.values("closed", workers, lambda stats: stats.throughput)).mean()))


def _growth(evidence: Evidence, counts: tuple[int, ...]) -> tuple[bool | None, str]:
    """Elasticity over the last step, within rounds: from the next smaller count that shares rounds with the largest."""
    table, _ = evidence.capacities()
    for place in range(len(counts) - 2, -1, -1):
        steps = (table[:, -1] - table[:, place]) / np.log(counts[-1] / counts[place])
        common = steps[~np.isnan(steps)]
        if len(common) < 2:
            continue
        found: Interval = mean_interval(common)
        words = f"from {counts[place]} to {counts[-1]} workers throughput grows {found.value:.2f} times as fast as workers"
        helps = True if found.low > GROWS else (False if found.high < GROWS else None)
        return helps, f"{words} [{found.low:.2f}, {found.high:.2f}]"
    return None, ""


def _refusals(evidence: Evidence) -> str:
    """Refused although capacity exceeds the rate by a fifth: the queue is too short for the bursts."""
    for count in evidence.counts("open"):
        closed = evidence.values("closed", count, lambda stats: stats.throughput)
        refused = 1 - float(evidence.values("open", count, lambda stats: stats.answered).mean())
        if refused > REFUSED and len(closed) and float(closed.mean()) > 1.2 * evidence.plan.rate:
            return f"{refused:.1%} of the requests fail at {count} workers, which could carry {float(closed.mean()):.1f}/s"
    return ""
