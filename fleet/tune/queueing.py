"""A discrete-event simulation of workers behind a least-connections balancer.

Knows: open and closed arrivals, the generator's limits. Does not know: where its numbers come from (a law file, or what was
measured), noise between runs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from fleet.tune.events import NEVER, Simulation
from fleet.tune.shape import Floats, Shape, Trace

__all__ = ["Shape", "Trace", "closed_loop", "open_loop"]

LATE_S = 0.1
"""How late the generator may send before it drops the arrival instead."""


def open_loop(shape: Shape, due: Floats, work: Sequence[float], slowness: Callable[[float], float] | None = None) -> Trace:
    """Requests come at the times ``due`` (s, ascending), whatever the workers do; the last ones are waited for.

    ``work`` is seconds of a worker alone, per request (used again from the start when there are more requests);
    ``slowness(t)`` multiplies the work that begins at t.
    """
    plain = shape.slots == 1 and shape.queue_limit is None and shape.max_in_flight is None and shape.max_rate is None
    if plain and slowness is None:
        return _plain_open_loop(shape, due, work)
    return _general_open_loop(shape, due, work, slowness)


def _general_open_loop(
    shape: Shape, due: Floats, work: Sequence[float], slowness: Callable[[float], float] | None = None
) -> Trace:
    run = Simulation(shape, work, slowness)
    limit = NEVER if shape.max_in_flight is None else shape.max_in_flight
    for moment in due.tolist():
        while (end := run.next_end()) <= moment:
            run.advance(end)
            run.end()
        run.advance(moment)
        if run.in_flight >= limit or run.sendable > moment + LATE_S:
            run.dropped += 1
            continue
        if shape.max_rate is not None:
            run.sendable = max(run.sendable, moment) + 1.0 / shape.max_rate
        run.send()
    _play_out(run)
    return run.trace()


def _plain_open_loop(shape: Shape, due: Floats, work: Sequence[float]) -> Trace:
    """The same without slots, limits and warm-up, four times as fast: a model asks for a million requests."""
    speeds, count, moments = shape.speeds, shape.workers, due.tolist()
    loads, queues = [0] * count, [deque[int]() for _ in range(count)]
    ends: list[tuple[float, int, int]] = []
    done, by, busy_s = [0.0] * len(moments), [0] * len(moments), [0.0] * (count + 1)
    now = effort = 0.0
    busy, turn, sizes = 0, 0, len(work)
    for number, moment in enumerate([*moments, NEVER]):
        while ends:
            end = now + (ends[0][0] - effort) / speeds[busy]
            if end > moment:
                break
            busy_s[busy] += end - now
            effort, index, finished = heapq.heappop(ends)
            now = done[finished] = end
            loads[index] -= 1
            if queues[index]:
                following = queues[index].popleft()
                heapq.heappush(ends, (effort + work[following % sizes], index, following))
            else:
                busy -= 1
        if moment == NEVER:
            break
        busy_s[busy] += moment - now
        effort += (moment - now) * speeds[busy]
        now = moment
        fewest, turn = min(loads), (turn + 1) % count
        while loads[turn] != fewest:
            turn = (turn + 1) % count
        by[number] = turn
        loads[turn] += 1
        if fewest:
            queues[turn].append(number)
        else:
            busy += 1
            heapq.heappush(ends, (effort + work[number % sizes], turn, number))
    latency = np.array(done) - due + shape.overhead_s
    return Trace(np.array(moments), latency, np.ones(len(moments), bool), np.array(by, np.int64), 0, np.array(busy_s))


def closed_loop(
    shape: Shape, users: int, duration_s: float, work: Sequence[float], slowness: Callable[[float], float] | None = None
) -> Trace:
    """``users`` send, wait for the answer and send again at once, for ``duration_s``; the last answers are waited for."""
    run = Simulation(shape, work, slowness)
    ready = [0.0] * min(users, shape.max_in_flight or users)
    interval = 1.0 / shape.max_rate if shape.max_rate else 0.0
    while ready and ready[0] < duration_s:
        moment = max(ready[0], run.sendable)
        if moment >= duration_s:
            break
        if (end := run.next_end()) <= moment:
            run.advance(end)
            run.end()
            heapq.heappush(ready, end + shape.overhead_s)
            continue
        heapq.heappop(ready)
        run.advance(moment)
        run.sendable = moment + interval
        if not run.send():
            heapq.heappush(ready, moment + shape.refusal_s)
        if not ready:
            ready = [_next_answer(run)]
    _play_out(run)
    return run.trace()


def _next_answer(run: Simulation) -> float:
    """Nobody is free to send: play to the next end."""
    end = run.next_end()
    run.advance(end)
    run.end()
    return end + run.shape.overhead_s


def _play_out(run: Simulation) -> None:
    while (end := run.next_end()) < NEVER:
        run.advance(end)
        run.end()
