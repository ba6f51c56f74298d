"""What the result cache did in the runs of a study, as clients saw it (``X-Cache``).

Knows: k6's shares of a whole run, its cold beginning included. Does not know: why an answer was known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.studies.verdicts import Run, counted

HIT, COALESCED = "kronos_cache_hit", "kronos_cache_coalesced"


class Known(msgspec.Struct, frozen=True):
    """A variant, over its runs that count: means of the shares of answers, and the smallest share of hits in a run."""

    variant: str
    runs: int
    hit: float
    coalesced: float
    fewest: float


def known(runs: Sequence[Run], variant: str, rates: Mapping[str, Mapping[str, float]]) -> Known | None:
    """``rates``: by run and metric. None for a variant to which no cache ever said anything."""
    found = [rates[run.id] for run in counted(runs, variant) if HIT in rates.get(run.id, {})]
    if not found:
        return None
    hits, coalesced = ([each[metric] for each in found] for metric in (HIT, COALESCED))
    return Known(variant, len(found), sum(hits) / len(hits), sum(coalesced) / len(coalesced), min(hits))
