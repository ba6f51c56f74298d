"""A request's result is the same alone, in any batch, in any worker: thousands of mixed requests, to the bit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from app.admission import Limits
from app.engine import Engine
from app.errors import Cancelled
from app.model.weights import Checkpoint
from app.permit import Ticket
from app.scheduler import PRIORITIES, Priority
from app.work import Embed, Float32, Forecast, Outcome, Sampling
from tests import golden_cases
from tests.kernel_cases import GREEDY, LOCAL_ISAS, build_watched, random_forecast, random_stamps

AMPLE = Limits(max_requests=100_000, max_work=10**9, bulk_share=1.0)
PATIENCE_S = 120.0
NUM_SLOTS = 16
NUM_CLIENTS = 4


@dataclass(frozen=True)
class Request:
    work: Forecast | Embed
    priority: Priority
    cancelled: bool


def random_request(rng: np.random.Generator) -> Request:
    lookback, horizon = int(rng.integers(1, 81)), int(rng.integers(1, 41))
    how = Sampling(float(rng.choice([0.3, 1.0, 1.7])), int(rng.choice([0, 0, 3])), float(rng.choice([0.2, 0.9, 1.0])))
    work: Forecast | Embed
    if rng.random() < 0.05:
        history = rng.standard_normal((lookback, 6)).astype(np.float32)
        work = Embed(history, random_stamps(rng, lookback))
    else:
        how = GREEDY if rng.random() < 0.2 else how
        sample_count = int(rng.choice([1, 2, 3, 5], p=[0.7, 0.15, 0.1, 0.05]))
        work = random_forecast(rng, lookback, horizon, how, sample_count, seed=int(rng.integers(2**63)))
    return Request(work, PRIORITIES[rng.integers(2)], cancelled=bool(rng.random() < 0.1))


def together(checkpoint: Checkpoint, requests: list[Request], isa: str, dtype: str) -> list[Outcome | None]:
    """Every request through one engine, from several clients in random order and with pauses, some given up on the
    way; None for those that ended as Cancelled."""
    engine = Engine(build_watched(checkpoint, isa=isa, num_slots=NUM_SLOTS, dtype=dtype), limits=AMPLE)
    engine.start()
    engine.prewarm()
    tickets: dict[int, Ticket] = {}

    def client(numbers: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in numbers:
            with engine.reserve(requests[number].priority) as permit:
                tickets[number] = permit.submit(requests[number].work, time.monotonic() + PATIENCE_S)
            if requests[number].cancelled:
                threading.Timer(rng.random() * 0.05, tickets[number].cancel, ["client gone"]).start()
            if rng.random() < 0.1:  # a pause in which the batch runs emptier
                time.sleep(rng.random() * 0.01)

    order = np.random.default_rng(len(requests)).permutation(len(requests)).tolist()
    clients = [threading.Thread(target=client, args=(order[c::NUM_CLIENTS], c)) for c in range(NUM_CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    outcomes = [outcome_of(tickets[number]) for number in range(len(requests))]
    engine.stop()
    engine._scheduler.audit()
    return outcomes


def outcome_of(ticket: Ticket) -> Outcome | None:
    try:
        return ticket.future.result(PATIENCE_S)
    except Cancelled:
        return None


def alone(checkpoint: Checkpoint, requests: list[Request], isa: str, dtype: str) -> list[Outcome]:
    """Each request through an engine of its own that serves nothing else, every tenth on a runner of its own."""
    outcomes = []
    for number, request in enumerate(requests):
        if number % 10 == 0:
            runner = build_watched(checkpoint, isa=isa, num_slots=1 + number % NUM_SLOTS, dtype=dtype)
        engine = Engine(runner)
        engine.start()
        outcomes.append(engine._submit(request.work, "interactive", time.monotonic() + PATIENCE_S).future.result(PATIENCE_S))
        engine.stop()
    return outcomes


def bits(outcome: Outcome) -> np.ndarray:
    made: Float32 | None = outcome.paths if outcome.paths is not None else outcome.embedding
    assert made is not None
    return made.view(np.int32)


OTHERS = [(isa, dtype) for dtype in ("float32", "bfloat16") for isa in LOCAL_ISAS][1:]


@pytest.mark.parametrize(
    ("count", "isa", "dtype"),
    [
        (400, LOCAL_ISAS[0], "float32"),
        pytest.param(2300, LOCAL_ISAS[0], "float32", marks=pytest.mark.slow),
        *((100, isa, dtype) for isa, dtype in OTHERS),
    ],
)
def test_a_result_is_the_same_alone_and_in_any_batch(count: int, isa: str, dtype: str) -> None:
    """Requests of every length, horizon, sampling, sample count and class share steps, roll, are paused and given up;
    each result is, bit for bit, that of the request alone."""
    rng = np.random.default_rng(count)
    checkpoint, requests = golden_cases.checkpoint(), [random_request(rng) for _ in range(count)]
    mixed = together(checkpoint, requests, isa, dtype)
    single = alone(checkpoint, requests, isa, dtype)
    seen: Counter[str] = Counter()
    for request, one, other in zip(requests, single, mixed, strict=True):
        if other is None:
            assert request.cancelled
            seen["given up"] += 1
            continue
        seen["compared"] += 1
        seen["rolled"] += one.rolled
        seen["exceptions"] += not np.array_equal(bits(one), bits(other))
    print(f"{isa}, {dtype}: {dict(seen)}")
    assert seen["exceptions"] == 0
    assert seen["compared"] > 0.85 * count
    assert seen["rolled"] > 0.2 * count
    assert 0 < seen["given up"] < 0.15 * count
