"""A simulated fleet of known truth that speaks the runner protocol: ``python -m fleet simulate LAW.json``.

Knows: the law file, the noise between runs, what a fleet's CPU would show. Does not know: what is concluded from it.

Two sources of randomness are kept apart, so that a campaign can be repeated: the noise of a round depends on the law's seed
and the round, everything else on the law's seed and the run's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from fleet.errors import BadSetting
from fleet.tune import queueing
from fleet.tune.protocol import Cpu, End, Floats, Request, RunSpec

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
# Structs forbid unknown fields: one that is misspelt must not vanish silently.


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long one request keeps a worker that is alone (s): mean and coefficient of variation.

    ``pareto`` has a tail index of its own in place of cv: 2.2 is heavy, 3 is still heavy, above 5 is light.
    """

    family: Literal["constant", "lognormal", "gamma", "pareto"] = "lognormal"
    mean_s: Positive
    cv: NotNegative = 0.5
    tail_index: Annotated[float, msgspec.Meta(gt=1)] = 2.5


class Generator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the load generator: requests under way, requests per second. null: none."""

    max_in_flight: Count | None = None
    max_rate: Positive | None = None


class WarmUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Work is ``1 + extra · exp(−t / seconds)`` times as long at the beginning of each run."""

    seconds: Positive = 5.0
    extra: NotNegative = 0.0


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Standard deviations of the logarithm of the work: per run, per round (common to its runs); ``drift`` per round."""

    run: NotNegative = 0.0
    round: NotNegative = 0.0
    drift: float = 0.0


class Law(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fleet. ``host_cores`` are shared when workers × ``worker_cores`` wants more; ``serial`` and ``crosstalk`` are σ and κ of
    the USL over *busy* workers; ``queue_limit`` is how many requests a worker holds before it refuses (null: any number);
    ``overhead_s`` is network and proxy; ``slots``, ``batch_cost`` describe batching (see queueing.Shape);
    ``thread_serial`` is the Amdahl share of one request over the setting ``threads``. ``report_cpu`` prints CPU figures.
    """

    service: Service
    name: str = ""
    seed: int = 0
    arrivals: Literal["constant", "poisson"] = "constant"
    host_cores: Positive = 64.0
    worker_cores: Positive = 1.0
    serial: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    crosstalk: NotNegative = 0.0
    slots: Count = 1
    batch_cost: NotNegative = 0.0
    queue_limit: Count | None = None
    overhead_s: NotNegative = 0.0
    thread_serial: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    generator: Generator = Generator()
    warm_up: WarmUp = WarmUp()
    noise: Noise = Noise()
    report_cpu: bool = True


def load(path: Path) -> Law:
    """Raises BadSetting that names the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Law)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadSetting(f"{path}: {error}", "the fields of a law are in fleet/tune/simulate.py") from None


def tuned(law: Law, spec: RunSpec) -> Law:
    """The law with the settings of a grid in place: ``threads`` and ``slots``. Raises BadSetting for others."""
    unknown = set(spec.settings) - {"threads", "slots"}
    if unknown:
        raise BadSetting(f"the simulated fleet has no setting {sorted(unknown)}", "it knows threads and slots")
    threads = float(spec.settings.get("threads", 1))
    slots = int(float(spec.settings.get("slots", law.slots)))
    faster = law.thread_serial + (1 - law.thread_serial) / threads
    service = msgspec.structs.replace(law.service, mean_s=law.service.mean_s * faster)
    return msgspec.structs.replace(law, service=service, slots=slots, worker_cores=law.worker_cores * threads)


def shape(law: Law, workers: int) -> queueing.Shape:
    """Speeds of k busy workers: their share of the cores, over the contention of the USL."""
    speeds = [1.0] + [
        min(1.0, law.host_cores / (k * law.worker_cores)) / (1 + law.serial * (k - 1) + law.crosstalk * k * (k - 1))
        for k in range(1, workers + 1)
    ]
    limits = law.generator
    return queueing.Shape(
        tuple(speeds), law.slots, law.batch_cost, law.queue_limit, overhead_s=law.overhead_s,
        max_in_flight=limits.max_in_flight, max_rate=limits.max_rate,
    )  # fmt: skip


def works(service: Service, count: int, random: np.random.Generator) -> Floats:
    """Seconds of work of ``count`` requests."""
    mean, cv = service.mean_s, service.cv
    if service.family == "pareto":
        a = service.tail_index
        return mean * (a - 1) / a * (1 + random.pareto(a, count))
    if service.family == "constant" or cv == 0:
        return np.full(count, mean)
    if service.family == "gamma":
        return random.gamma(1 / cv**2, mean * cv**2, count)
    sigma2 = math.log(1 + cv**2)
    return random.lognormal(math.log(mean) - sigma2 / 2, math.sqrt(sigma2), count)


def effect(law: Law, spec: RunSpec) -> float:
    """What the host does to all work of this run, as a factor."""
    of_round = np.random.default_rng([law.seed, 1, spec.round]).normal() * law.noise.round
    of_run = np.random.default_rng([law.seed, 2, spec.seed]).normal() * law.noise.run
    return math.exp(of_round + of_run + law.noise.drift * spec.round)


def play(law: Law, spec: RunSpec) -> queueing.Trace:
    """The run that the spec asks for."""
    law = tuned(law, spec)
    random = np.random.default_rng([law.seed, 3, spec.seed])
    fleet, warm = shape(law, spec.workers), law.warm_up
    slow = (lambda t: 1 + warm.extra * math.exp(-t / warm.seconds)) if warm.extra else None
    if spec.mode == "open":
        due = arrivals(law, spec, random)
        work = works(law.service, len(due), random) * effect(law, spec)
        return queueing.open_loop(fleet, due, work.tolist(), slow)
    most = int(2 * spec.duration_s * spec.workers * law.slots / law.service.mean_s) + 100
    work = works(law.service, min(most, 100_000), random) * effect(law, spec)
    return queueing.closed_loop(fleet, spec.vus or 1, spec.duration_s, work.tolist(), slow)


def arrivals(law: Law, spec: RunSpec, random: np.random.Generator) -> Floats:
    """When requests are due (s)."""
    rate = spec.rate or 0.0
    if law.arrivals == "constant":
        return np.arange(0.0, spec.duration_s, 1.0 / rate)
    due = np.cumsum(random.exponential(1.0 / rate, int(rate * spec.duration_s * 1.5) + 50))
    return due[due < spec.duration_s]


def cpu(law: Law, spec: RunSpec, trace: queueing.Trace) -> Cpu:
    """Busy workers use CPU, except while they wait for the serial part; the generator's use follows its rate."""
    if not law.report_cpu:
        return Cpu()
    law = tuned(law, spec)
    wall = max(float(trace.busy_s.sum()), spec.duration_s)
    used = sum(
        seconds * k * min(law.worker_cores, law.host_cores / k) / (1 + law.serial * (k - 1))
        for k, seconds in enumerate(trace.busy_s.tolist())
        if k
    )
    sent = len(trace.due) / spec.duration_s
    generator = sent / law.generator.max_rate if law.generator.max_rate else 0.1
    return Cpu(used / wall / (spec.workers * law.worker_cores), used / wall / law.host_cores, min(1.0, generator))


def lines(law: Law, spec: RunSpec) -> Iterator[bytes]:
    """What a runner prints, line by line."""
    trace = play(law, spec)
    encoder = msgspec.json.Encoder()
    rows = zip(trace.due.tolist(), trace.latency.tolist(), trace.ok.tolist(), trace.worker.tolist(), strict=True)
    for due, latency, ok, worker in rows:
        yield encoder.encode(Request(due, latency, ok, str(worker + 1))) + b"\n"
    yield encoder.encode(End(True, spec.duration_s, trace.dropped, cpu(law, spec, trace))) + b"\n"


def answer(path: Path) -> None:
    """One run of the protocol: spec from standard input, lines to standard output. Raises BadSetting."""
    law = load(path)
    try:
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=RunSpec)
    except msgspec.MsgspecError as error:
        raise BadSetting(f"standard input is no run: {error}", 'like {"workers": 3, "mode": "open", "rate": 40.0, …}') from None
    sys.stdout.buffer.writelines(lines(law, spec))
