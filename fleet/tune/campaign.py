"""One campaign from its plan to its last run: which rounds come next, repeats, resuming.

Knows: the stages and when each is over. Does not know: how a run is made or stored (``measure`` does both), reports.

Stages: *sweep* (all counts, both modes); *held-out* (predicted first, then measured); *boundary* (the counts between which the
answer lies, until their intervals are narrow); *confirm* and *lost* (the answer again, and with one worker less). What a round
holds depends on the records of earlier rounds alone, so a campaign that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fleet.tune import decide
from fleet.tune.analyst import Analyst, Settings
from fleet.tune.decide import Chance
from fleet.tune.evidence import Evidence
from fleet.tune.plan import Slot, both, shuffled, sweep
from fleet.tune.protocol import Setting
from fleet.tune.raw import Record

Measure = Callable[[Slot, int], Record]
"""Makes attempt number … at a slot, stores it, gives it back."""
LIKELY = 0.5
"""A count that meets the objective with at least this probability may turn out to be the answer."""
CONFIRMATIONS = 2
"""Times that an answer is tested again before its runs are left to speak for themselves."""


def next_round(analyst: Analyst, records: Sequence[Record]) -> list[Slot]:
    """What the round after these records holds; [] when the campaign is over."""
    plan = analyst.plan
    number = 1 + max((record.slot.round for record in records), default=-1)
    if number == 1 and not any(analyst.verdict(record).usable for record in records):
        return []
    if number < plan.rounds:
        return [slot for slot in sweep(plan) if slot.round == number]
    if plan.held_out is not None and number < 2 * plan.rounds:
        return shuffled(plan, both(plan, "held-out", number, [plan.held_out]))
    wanted = [slot for settings in plan.grid for slot in _deciding(analyst, settings, records, number)]
    return shuffled(plan, wanted) if wanted else []


def _deciding(analyst: Analyst, settings: dict[str, Setting], records: Sequence[Record], number: int) -> list[Slot]:
    """Boundary, then confirmation, of one setting."""
    plan = analyst.plan
    evidence, found = analyst.evidence(records, settings), analyst.chances(records, settings)
    by_count = {one.workers: one for one in found}
    open_counts = [count for count in boundary(found) if not _done(evidence, by_count[count])]
    slots: list[Slot] = []
    for count in open_counts:
        slots.append(Slot("boundary", number, count, "open", settings=settings))
        tells_moods = count == open_counts[-1]  # one more round in which the host was seen
        if (tells_moods or len(evidence.of("closed", count)) < plan.rounds) and not _hopeless(evidence, count, "closed"):
            slots.append(Slot("boundary", number, count, "closed", settings=settings))
    answer = decide.recommended(found)
    if slots or answer is None:
        return slots
    made = [slot for slot in {judged.slot.id: judged.slot for judged in evidence.attempts}.values() if slot.stage == "confirm"]
    tested = {slot.workers for slot in made}
    if sum(slot.workers == answer.workers for slot in made) >= plan.confirm or len(tested | {answer.workers}) > CONFIRMATIONS:
        return []
    again = [Slot("confirm", number, answer.workers, "open", settings=settings)]
    if answer.workers > 1:
        again.append(Slot("lost", number, answer.workers - 1, "open", settings=settings))
    return again


def boundary(found: Sequence[Chance]) -> list[int]:
    """The counts among which the answer is: from the one below the first likely one up to the answer so far, or, while there is
    none, to the likeliest."""
    likely = next((place for place, one in enumerate(found) if one.p is not None and one.p >= LIKELY), None)
    if likely is None:
        return [found[-1].workers]
    last = decide.recommended(list(found)) or max(found, key=lambda one: one.p or 0.0)
    return [one.workers for one in found[max(0, likely - 1) :] if one.workers <= last.workers]


def _done(evidence: Evidence, found: Chance) -> bool:
    """Settled, or as many runs as the plan allows, or no run can be had."""
    runs = len(evidence.of("open", found.workers))
    return runs >= evidence.plan.most_runs or decide.settled(evidence, found) or _hopeless(evidence, found.workers, "open")


def _hopeless(evidence: Evidence, workers: int, mode: str) -> bool:
    """Two slots were given up: a third would be too."""
    return sum((slot.workers, slot.mode) == (workers, mode) for slot in evidence.given_up) >= 2


def attempts_allowed(analyst: Analyst, slot: Slot, earlier: Sequence[Record]) -> int:
    """A configuration that was given up twice is not repeated any more, only reported."""
    alike = [one for one in earlier if _configuration(one.slot) == _configuration(slot)]
    usable = {one.slot.id for one in alike if analyst.verdict(one).usable}
    given_up = {one.slot.id for one in alike} - usable
    return 1 if len(given_up) >= 2 else analyst.plan.attempts


def _configuration(slot: Slot) -> tuple[int, str, Settings]:
    return slot.workers, slot.mode, slot.settings


def go_on(analyst: Analyst, records: list[Record], measure: Measure, before: Callable[[list[Slot]], None]) -> Iterator[Record]:
    """Measure all that is missing, adding to ``records``; ``before`` sees each round before its first run."""
    current = max((record.slot.round for record in records), default=-1)
    slots = next_round(analyst, [record for record in records if record.slot.round < current])
    while slots:
        before(slots)
        earlier = [record for record in records if record.slot.round < slots[0].round]
        for slot in slots:
            yield from _slot(analyst, slot, records, attempts_allowed(analyst, slot, earlier), measure)
        slots = next_round(analyst, records)


def _slot(analyst: Analyst, slot: Slot, records: list[Record], allowed: int, measure: Measure) -> Iterator[Record]:
    """Attempts at one slot until one may be used, or no more are allowed."""
    made = [record for record in records if record.slot.id == slot.id]
    while len(made) < allowed and not any(analyst.verdict(record).usable for record in made):
        record = measure(slot, len(made) + 1)
        made.append(record)
        records.append(record)
        yield record
