"""From runs to a worker count: probabilities, settled counts, verdicts, limits, the latency model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tuner_fleets import in_memory
from fleet.tune import bottleneck, campaign, compare, decide, laws, simulate
from fleet.tune.analyst import Analyst
from fleet.tune.decide import Chance
from fleet.tune.evidence import Evidence
from fleet.tune.moods import Moods
from fleet.tune.objective import Objective
from fleet.tune.plan import Plan
from fleet.tune.protocol import Server
from fleet.tune.raw import Record
from fleet.tune.response import SLOWNESS, Response, Runs
from fleet.tune.statistics import Interval
from tests.tune import rigs

pytestmark = pytest.mark.usefixtures("quick_model")

logs = st.lists(st.floats(-5, 5), min_size=2, max_size=12).map(np.array)


def swept(law: simulate.Law, plan: Plan | None = None) -> tuple[Analyst, list[Record]]:
    """A whole campaign on a simulated fleet, without files."""
    analyst, records = Analyst(plan or rigs.plan(rounds=6)), list[Record]()
    for _ in campaign.go_on(analyst, records, in_memory(law, analyst.plan), lambda slots: None):
        pass
    return analyst, records


@cache
def usual() -> tuple[Analyst, list[Record]]:
    """Workers of 10/s, 25/s wanted, p95 below 300 ms: three are enough."""
    return swept(rigs.LAW)


@given(logs, st.floats(-5, 5), st.floats(0.01, 1))
def test_a_laxer_objective_is_never_less_likely(values: np.ndarray, target: float, error: float) -> None:
    """P lies between 0 and 1, grows with the objective, and is a half where the runs' mean is."""
    errors = np.full(len(values), error)
    first, second = decide.below(target, values, errors), decide.below(target + 0.1, values, errors)
    middle = decide.below(float(values.mean()), values, errors)
    assert first is not None and second is not None and middle is not None
    assert 0 <= first.p <= second.p <= 1 and second.spare == pytest.approx(first.spare + 0.1)
    assert middle.p == pytest.approx(0.5)


def test_a_single_run_decides_nothing() -> None:
    """One run has no scatter, so there is no probability."""
    assert decide.below(0.0, np.array([-1.0]), np.array([0.1])) is None


def test_the_hosts_noise_counts_and_the_shortness_of_runs_does_not() -> None:
    """The same scatter between runs: explained by sampling it averages out, as the host's mood it stays."""
    values = np.array([-0.3, -0.1, -0.2, -0.25, -0.05, -0.3, -0.2, -0.1])
    sampling, host = (decide.below(0.0, values, np.full(8, error)) for error in (0.1, 0.0))
    assert sampling is not None and host is not None and sampling.p > 0.99 > host.p and sampling.spare > host.spare
    steeper = np.interp(SLOWNESS, [-0.3, -0.08, 0.0, 0.08, 0.15, 0.3], [-0.8, -0.5, -0.2, 0.5, 1.3, 2.8])
    calm, moody = (decide.below(0.0, values, np.full(8, 0.1), response(steeper, steeper, noise)) for noise in (0.0, 0.05))
    assert calm is not None and moody is not None and calm.p > 0.99 > moody.p


def response(
    short: np.ndarray, long: np.ndarray, noise: float, freedom: float = 1000, rounds: int = 200, sampling: float = 0.0
) -> Response:
    """Of a model on a host whose moods are known, by many runs, as well as how slow it was on the average."""
    moods = Moods(math.hypot(noise, sampling), sampling, freedom, rounds)
    return Response(short, np.full(len(SLOWNESS), 0.01**2), long, moods)


def runs(mean: float, between: float = 0.01, number: int = 12) -> Runs:
    return Runs(number, mean, between, 0.01**2)


@given(st.floats(-1, 1), st.floats(0.001, 0.2), st.floats(0, 0.1), st.integers(1, 200), st.floats(0, 1))
def test_a_response_is_a_probability_that_falls_with_latency(
    mean: float, between: float, noise: float, rounds: int, longer: float
) -> None:
    """Within 0 and 1; less for slower runs, and less when a long time is worse than a run."""
    curve = np.linspace(-1, 1, len(SLOWNESS))
    here = response(curve, curve, noise, rounds=rounds).outlook(0.0, runs(mean, between))
    slower = response(curve, curve, noise, rounds=rounds).outlook(0.0, runs(mean + 0.1, between))
    worse = response(curve, curve + longer, noise, rounds=rounds).outlook(0.0, runs(mean, between))
    assert 0 <= slower.p <= here.p + 1e-9 and here.p <= 1 and worse.p <= here.p + 1e-9
    assert slower.spare < here.spare and worse.spare <= here.spare and here.error > 0


def test_runs_do_not_move_the_saturation_that_throughput_has_shown() -> None:
    """Runs 10 % faster than the model, where latency hardly answers: the model errs by that factor, and a host that is slower by
    0.05 still stands before the same wall. Where it answers steeply, a slow mean is a slow host."""
    run = 0.5 * SLOWNESS - 0.3
    wall = response(run, np.where(SLOWNESS > 0.05, 2.0, run), noise=0.04).outlook(0.0, runs(-0.4, 0.02**2))
    assert wall.p == pytest.approx(NormalDist().cdf(0.044 / 0.04), abs=0.03) and wall.spare < -1
    calm = response(run, np.where(SLOWNESS > 0.05, 2.0, run), noise=0.0).outlook(0.0, runs(-0.4, 0.01**2))
    assert calm.spare == pytest.approx(0.4, abs=0.02)
    ramp = 10 * SLOWNESS - 0.3
    slow = response(ramp, ramp + np.where(SLOWNESS > 0.015, 1.0, 0.0), noise=0.0, sampling=0.03, rounds=1)
    assert slow.outlook(0.5, runs(-0.3, 0.01)).p > 0.8 > 0.5 > slow.outlook(0.5, runs(0.0, 0.01)).p


def test_how_far_runs_scatter_tells_the_moods_too() -> None:
    """Twelve rounds of throughput happened to be calm: forty runs that scatter more than chance alone are believed instead."""
    curve = 4 * SLOWNESS - 0.2
    seen = (runs(-0.2, (4 * size) ** 2, 40) for size in (0.01, 0.05))
    calm, moody = (response(curve, curve, noise=0.01, freedom=8).outlook(0.0, each) for each in seen)
    assert calm.spare == pytest.approx(0.2 - 4 * 1.645 * 0.01, abs=0.03) and calm.p > 0.99
    assert moody.spare == pytest.approx(0.2 - 4 * 1.645 * 0.045, abs=0.06) and moody.p < 0.95


def test_a_model_that_does_not_explain_the_runs_is_left_out() -> None:
    """A count at which the model is far off is judged by its runs alone."""
    curve = np.linspace(-1, 1, len(SLOWNESS))
    values, errors = np.array([-0.9, -0.8, -0.85, -0.95, -0.9, -0.8]), np.full(6, 0.1)
    far, near = response(curve, curve + 5, 0.02), response(curve - 0.7, curve + 5, 0.02)
    assert not far.explains(runs(-0.9)) and near.explains(runs(-0.9))
    alone = decide.below(-0.5, values, errors)
    assert decide.below(-0.5, values, errors, far) == alone != decide.below(-0.5, values, errors, near)


def test_runs_that_still_settle_leave_it_to_the_model() -> None:
    """The queue of a warm-up that has not drained when they end: however bad it looks, three workers are enough in the long run,
    no more runs are asked for, and it is said. The control: as many runs that are steady are believed, as bad as they are."""
    analyst, records = usual()
    shapes: tuple[Callable[[np.ndarray], np.ndarray], ...] = (lambda t: 1 + 9 * np.exp(-t / 5), lambda t: 2.0 + 0 * t)
    fading, bad = ([slowed(record, shape) for record in records] for shape in shapes)
    for made, settling in ((records, False), (bad, False), (fading, True)):
        found = Analyst(analyst.plan)
        evidence, judged = found.evidence(made, {}), found.chances(made, {})[2]
        assert (evidence.settling(3), judged.settling) == (settling, settling)
        assert judged.p is not None and (judged.p > 0.95) is (made is not bad)
        assert not settling or decide.settled(evidence, judged)


def slowed(record: Record, shape: Callable[[np.ndarray], np.ndarray]) -> Record:
    """The same run with three workers' latency changed over time."""
    if record.points is None or record.slot.workers != 3 or record.slot.mode != "open":
        return record
    return replace(record, points=replace(record.points, latency=record.points.latency * shape(record.points.due)))


def chance(workers: int, p: float | None) -> Chance:
    return Chance(workers, p, p, None, 6, 6, None)


@pytest.mark.parametrize(
    "spare, enough",
    [((1.06, 1.02, 1.1), True), ((0.85, 0.8, 0.9), True), ((1.05, 0.98, 1.12), False), ((1.05, 1.005, 1.095), False)],
)
def test_a_count_is_settled_when_it_is_known_which_side_it_is_on(spare: tuple[float, float, float], enough: bool) -> None:
    """However narrow the interval of the runs' mean is: what a slow hour is like depends on more than that."""
    analyst, records = usual()
    evidence = analyst.evidence(records, {})
    narrow = replace(evidence, plan=msgspec.structs.replace(evidence.plan, precision=1.0))
    judged = msgspec.structs.replace(decide.chance(evidence, 3), spare=Interval(*spare))
    assert decide.settled(narrow, judged) is enough


def test_the_answer_is_the_smallest_sure_count_and_the_boundary_is_around_it() -> None:
    """0.95 is sure; more runs go to the first likely count, the one below, and the answer so far."""
    found = [chance(1, 0.0), chance(2, 0.1), chance(3, 0.7), chance(4, 0.96), chance(5, 0.99)]
    answer = decide.recommended(found)
    assert answer is not None and answer.workers == 4
    assert campaign.boundary(found) == [2, 3, 4]
    between = [chance(1, 0.1), chance(2, 0.6), chance(3, 0.9), chance(4, 0.94), chance(5, 0.97), chance(6, 0.99)]
    assert campaign.boundary(between) == [1, 2, 3, 4, 5]
    assert campaign.boundary(between[:4]) == [1, 2, 3, 4]
    assert decide.recommended(found[:3]) is None
    assert campaign.boundary(found[:2]) == [2]
    assert campaign.boundary([chance(1, 0.99), chance(2, 0.99)]) == [1]


def test_a_campaign_finds_the_right_count_and_confirms_it() -> None:
    """Three of five workers are enough; the answer is tested again, also with one worker less, and that fails."""
    analyst, records = usual()
    answer = decide.recommended(analyst.chances(records, {}))
    assert answer is not None and answer.workers == 3
    stages = {(record.slot.stage, record.slot.workers) for record in records}
    assert {("confirm", 3), ("lost", 2), ("held-out", analyst.plan.held_out)} <= stages
    evidence, found = analyst.evidence(records, {}), analyst.chances(records, {})
    for count in (2, 3):
        enough = len(evidence.of("open", count)) >= analyst.plan.most_runs
        assert enough or decide.settled(evidence, found[count - 1])


def test_runs_that_are_missing_for_a_decision_are_counted() -> None:
    """Few and scattered runs near the objective need more; runs far from it need none beyond six."""
    analyst, records = usual()
    evidence = analyst.evidence(records, {})
    far = decide.runs_needed(evidence, 5)
    middle = float(np.exp(np.log(evidence.values("open", 3, lambda stats: stats.quantile)).mean()))
    near = Analyst(msgspec.structs.replace(analyst.plan, objective=Objective(0.95, middle * 1.02)))
    many = decide.runs_needed(near.evidence(records, {}), 3)
    assert far == 1 and (many is None or many > 10)
    host = Analyst(msgspec.structs.replace(analyst.plan, objective=Objective(0.95, middle * 1.05)))
    moody = [on_a_moody_host(record, 0.3) for record in records if record.slot.workers == 3]
    assert decide.runs_needed(host.evidence(moody, {}), 3) is None


def on_a_moody_host(record: Record, size: float) -> Record:
    """The same run on a host that is faster or slower by turns."""
    assert record.points is not None
    factor = math.exp(size if record.slot.round % 2 else -size)
    return replace(record, points=replace(record.points, latency=record.points.latency * factor))


def test_later_rounds_do_not_change_the_model() -> None:
    """Boundary and confirmation go where the model pointed: they are no fair sample to make it from."""
    analyst, records = usual()
    early = [record for record in records if record.slot.stage in {"sweep", "held-out"}]
    first, second = (Analyst(analyst.plan).model(made, {}) for made in (early, records))
    assert len(early) < len(records) and first is not None and second is not None
    assert first.errors == second.errors and first.speed == second.speed


def test_moods_of_the_host_are_amplified_near_saturation() -> None:
    """The same noise costs little with five workers and much with three; a long time is no better than a run."""
    analyst, records = usual()
    model = analyst.model(records, {})
    assert model is not None
    three, five = (model.response(count, 25.0) for count in (3, 5))
    ahead = list(SLOWNESS).index(0.08)
    usually = list(SLOWNESS).index(0.0)
    assert three.long[ahead] - three.long[usually] > five.long[ahead] - five.long[usually] > 0.05
    assert (np.diff(three.short) >= 0).all() and three.long[ahead] > three.short[ahead] - 0.05
    target, seen = three.long[usually] + 0.25, runs(three.short[usually], 0.05**2)
    calm, moody, hardly_known = (
        replace(three, moods=Moods(noise, 0.0, freedom, 12)).outlook(target, seen).p
        for noise, freedom in ((0.001, 1000), (0.07, 1000), (0.07, 1))
    )
    assert calm > 0.95 > moody > 0.3 and hardly_known > moody  # what is hardly known is what the runs' scatter says


def test_the_model_predicts_what_it_has_not_seen() -> None:
    """Calibrated without the held-out count, it is right within its interval there, and within 20 % at every steady count."""
    analyst, records = usual()
    before = [record for record in records if record.slot.stage == "sweep"]
    [(_, predicted)] = analyst.predictions(before)
    assert predicted is not None and predicted.low < predicted.quantile < predicted.high
    measured = analyst.evidence(records, {}).values("open", predicted.workers, lambda stats: stats.quantile)
    assert predicted.low < np.exp(np.log(measured).mean()) < predicted.high
    model = analyst.model(records, {})
    assert model is not None and max(abs(error) for error in model.errors.values()) < 0.2


def test_the_model_carries_more_with_more_workers_and_less_than_they_can_do() -> None:
    """The largest rate that holds the objective grows with workers and stays below throughput at saturation."""
    analyst, records = usual()
    model = analyst.model(records, {})
    assert model is not None
    rates = [model.carries(count) for count in (2, 4)]
    assert 0 < rates[0] < rates[1] < model.law.throughput(4)


@cache
def evidence_of(law: simulate.Law) -> Evidence:
    """Sweep of a fleet up to eight workers."""
    plan = rigs.plan(rounds=6, workers=(1, 2, 4, 8), most_runs=6)
    return (lambda made: made[0].evidence(made[1], {}))(swept(law, plan))


SERVICE = simulate.Service(mean_s=0.05, cv=0.3)
LIMITS = {
    "workers": simulate.Law(service=SERVICE),
    "host": simulate.Law(service=SERVICE, host_cores=3),
    "serial": simulate.Law(service=SERVICE, serial=0.1),
    "crosstalk": simulate.Law(service=SERVICE, crosstalk=0.02),
    "generator": simulate.Law(service=SERVICE, generator=simulate.Generator(max_rate=18)),
}


@pytest.mark.parametrize("limit", list(LIMITS))
def test_each_limit_is_named_with_its_evidence(limit: str) -> None:
    """What a simulated fleet suffers from is found; on a full host more workers are said to be no help."""
    evidence = evidence_of(LIMITS[limit])
    found = bottleneck.find(evidence, laws.choose(*evidence.capacities()))
    assert found.verdict == limit
    assert found.evidence
    if limit == "host":
        assert found.more_workers_help is False and "cannot help" in found.evidence[-1]
    if limit == "workers":
        assert found.more_workers_help is True


@pytest.mark.parametrize(
    "limit, said, verdict",
    [
        ("workers", Server(throttled=0.9), "quota"),
        ("workers", Server(throttled=0.1), "workers"),
        ("serial", Server(inside_s=0.9, outside_s=0.1), "serial"),
        ("serial", Server(inside_s=0.1, outside_s=0.9), "front"),
    ],
)
def test_what_the_fleet_says_tells_limits_apart_that_look_alike(limit: str, said: Server, verdict: str) -> None:
    """A quota from slow workers, a queue before the workers from one inside them."""
    found = evidence_of(LIMITS[limit])
    plan, records = found.plan, [attempt.record for attempt in found.attempts]
    told = [replace(one, end=one.end and msgspec.structs.replace(one.end, server=said)) for one in records]
    evidence = Analyst(plan).evidence(told, {})
    assert bottleneck.find(evidence, laws.choose(*evidence.capacities())).verdict == verdict


@pytest.mark.parametrize("fleet, verdict", [(0.2, "neighbours"), (0.9, "host")])
def test_a_host_that_is_busy_with_something_else_is_no_verdict_on_the_fleet(fleet: float, verdict: str) -> None:
    """All cores busy, but not by workers or generator."""
    found = evidence_of(LIMITS["host"])
    plan, records = found.plan, [attempt.record for attempt in found.attempts]
    told = []
    for one in records:
        assert one.end is not None
        told.append(replace(one, end=msgspec.structs.replace(one.end, cpu=msgspec.structs.replace(one.end.cpu, fleet=fleet))))
    evidence = Analyst(plan).evidence(told, {})
    assert bottleneck.find(evidence, laws.choose(*evidence.capacities())).verdict == verdict


def test_without_cpu_figures_the_host_is_not_blamed() -> None:
    """A runner need not know CPU; then the shape alone speaks, and says that it does."""
    evidence = evidence_of(msgspec.structs.replace(LIMITS["host"], report_cpu=False))
    found = bottleneck.find(evidence, laws.choose(*evidence.capacities()))
    assert found.verdict != "host" and "without CPU figures" in found.evidence[-1]


def test_equal_configurations_are_not_told_apart() -> None:
    """The A/A control: nothing in a campaign differs from itself."""
    analyst, records = usual()
    evidence = analyst.evidence(records, {})
    for metric in compare.METRICS:
        alike, floor = compare.floor(evidence, metric)
        assert alike is not None and floor is not None and alike.low < 1.1 and alike.high > 0.9
        same = compare.compare(evidence, evidence, (4, 4), metric)
        assert same.verdict == "no difference that matters"


def test_a_real_difference_is_found_in_pairs() -> None:
    """From two to four workers throughput doubles, better; latency of an overloaded fleet is not compared."""
    analyst, records = usual()
    evidence = analyst.evidence(records, {})
    pair = tuple(count for count in (2, 3, 4, 5) if count in analyst.plan.counts)[:2]
    more = compare.compare(evidence, evidence, (pair[0], pair[1]), "throughput")
    assert more.paired and more.verdict == "better"
    assert more.ratio is not None and more.ratio.low < pair[1] / pair[0] * 1.02 and more.ratio.high > pair[1] / pair[0] * 0.98
    assert compare.compare(evidence, evidence, (1, 2), "quantile").verdict == "not measured"


@pytest.mark.parametrize(
    "interval, verdict",
    [
        (Interval(0.2, 0.15, 0.25), "better"),
        (Interval(-0.2, -0.25, -0.15), "worse"),
        (Interval(0.02, 0.01, 0.03), "no difference that matters"),
        (Interval(0.04, -0.1, 0.2), "undecided"),
        (Interval(0.2, 0.15, 0.25, claim=False), "undecided"),
        (Interval(0.06, -0.01, 0.13), "undecided"),
    ],
)
def test_a_verdict_needs_significance_and_size(interval: Interval, verdict: str) -> None:
    """Six rounds, an interval without equality, and a minimum effect that was named before."""
    assert compare.judge(interval, math.log(1.05), more_is_better=True) == verdict


def test_more_is_not_always_better() -> None:
    """Latency that grows is worse."""
    assert compare.judge(Interval(0.2, 0.15, 0.25), 0.05, more_is_better=False) == "worse"
