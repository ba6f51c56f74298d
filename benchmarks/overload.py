"""What a fleet does with three times what it can: with one class of requests (F10), and with two (F11).

    [KRONOS_MAX_QUEUE_WAIT=4] python -m benchmarks.overload [--workers 2] [--seconds 60] [--json reports/…-overload/….json]

A fleet of its own, the bundled model, 400 candles → 120. First its capacity (a closed loop of more users than it has slots);
then half of that, all interactive, alone; then the same while as much again is added as makes three times the capacity: as
bulk, and as interactive, which is also the control of the first: what priorities are for is seen without them. Each answer
is compared with the one the same request got alone. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from app.settings import load
from benchmarks.fleet import Judge, ask_alone, bodies, fleet_to_measure, percentiles, state
from benchmarks.users import Exchange, Load, Request, run

Priority = Literal["interactive", "bulk"]
BASE, OVERLOAD = 0.5, 3.0
"""Parts of the capacity: what is always asked, and that with what is added."""
USERS_PER_WORKER = 12
"""More than it has slots, so that it is never idle."""
DIFFERENT = 12
HOST = "127.0.0.1"
REFUSED = "status 429"
"""As it should be; one that does not say when to come back has another name (benchmarks/users.py)."""


def answered(exchanges: Sequence[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if not exchange.failure]


def goodput(exchanges: Sequence[Exchange], begin: float, end: float) -> float:
    """Right answers a second that arrived between two moments (s)."""
    return sum(begin <= each.begun + each.seconds < end for each in answered(exchanges)) / (end - begin)


def summary(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """What became of them; seconds of answers and of refusals; failures that are no refusals, by kind."""
    refused = [exchange for exchange in exchanges if exchange.failure == REFUSED]
    others = Counter(each.failure for each in exchanges if each.failure not in ("", REFUSED))
    good = answered(exchanges)
    return {
        "asked": len(exchanges), "answered": len(good), "share": round(len(good) / len(exchanges), 4), "failed": dict(others),
        "refused": len(refused), "answer_s": percentiles(good), "refusal_s": percentiles(refused),
    }  # fmt: skip


def recovered(base: Sequence[Exchange], end: float, p99: float) -> float | None:
    """Seconds from ``end`` until all that was asked later was answered within ``p99``; None: not while it was looked at."""
    late = [each.begun for each in base if each.begun >= end and (each.failure or each.seconds > p99)]
    last = max((each.begun for each in base), default=end)
    found = max(late, default=end) - end
    return round(found, 1) if last - end > found + 1 else None


async def measure(port: int, workers: int, seconds: float, asked: Sequence[bytes]) -> dict[str, Any]:
    """The report. ``asked`` are documents without a priority."""
    judge = Judge()
    alone = await ask_alone(HOST, port, asked)

    def of_class(priority: Priority) -> list[Request]:
        documents = (json.dumps({**json.loads(body), "priority": priority}).encode() for body in asked)
        return [judge.request(body, answer) for body, answer in zip(documents, alone, strict=True)]

    async def arrive(priority: Priority, rate: float, lasting: float, seed: int) -> list[Exchange]:
        return await run(Load(HOST, port, 4, lasting, rate=rate, seed=seed), of_class(priority))

    users = Load(HOST, port, USERS_PER_WORKER * workers, seconds / 2, pause=(0, 0))
    capacity = goodput(await run(users, of_class("interactive")), seconds / 8, seconds / 2)
    usual = percentiles(answered(await arrive("interactive", BASE * capacity, seconds / 2, seed=1)))
    report: dict[str, Any] = {"capacity_per_s": round(capacity, 2), "base_s": usual}
    for added in ("bulk", "interactive"):
        base, more = await asyncio.gather(
            arrive("interactive", BASE * capacity, 1.5 * seconds, seed=2),
            arrive(added, (OVERLOAD - BASE) * capacity, seconds, seed=3),
        )
        report[f"added {added}"] = {
            "goodput": round(goodput([*base, *more], seconds / 4, seconds) / capacity, 3),
            "base": summary([each for each in base if each.begun < seconds]), "more": summary(more),
            "recovered_s": recovered(base, seconds, 1.5 * usual["p99"]),
        }  # fmt: skip
    return report | {"equal_but_not_bit_for_bit": judge.inexact}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", metavar="DIR")
    parser.add_argument("--tokenizer", metavar="DIR")
    parser.add_argument("--port", type=int, default=8180, help="of its own fleet (default: 8180)")
    parser.add_argument("--json", type=Path, help="also write the last line here")
    options = parser.parse_args()
    with fleet_to_measure(options, options.workers) as run_folder:
        port = state(run_folder).plan.port
        report = asyncio.run(measure(port, options.workers, options.seconds, bodies(400, 120, DIFFERENT)))
    document = {"workers": options.workers, "seconds": options.seconds, "longest_wait_s": load().max_queue_wait, **report}
    for name, value in document.items():
        print(f"{name:>26}  {value}", file=sys.stderr)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
