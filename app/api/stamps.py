"""ISO 8601 texts ↔ wall-clock times.

The model reads the wall clock of the series' own offset, so a series has one offset, or none.
Knows: the accepted forms. Does not know: what is forecast. The calendar is numpy's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.api.faults import Faults

Times = NDArray[np.datetime64]

FIRST_YEAR: Final = 1678  # nanoseconds in 64 bits reach from 1677-09-21 to 2262-04-11
LAST_YEAR: Final = 2261
FORM: Final = re.compile(
    r"(?P<clock>\d{4}-\d\d-\d\d(?:(?P<separator>[T ])\d\d:\d\d(?::\d\d(?:\.(?P<fraction>\d{1,9}))?)?)?)"
    r"(?P<offset>Z|[+-](?:0\d|1[0-4]):?[0-5]\d)?",
    re.ASCII,
)
Unit = Literal["D", "m", "s", "ms", "us", "ns"]
# Characters of the clock part → the unit it is written in.
WRITTEN: Final[dict[int, Unit]] = {10: "D", 16: "m", 19: "s", 23: "ms", 26: "us", 29: "ns"}
NOT_A_STAMP: Final = "is not an ISO 8601 timestamp such as 2024-06-01T00:00:00Z"


@dataclass(frozen=True)
class Stamps:
    """Wall-clock times (datetime64[ns]) of one offset, and how they are written."""

    times: Times
    offset: int | None  # minutes east of UTC; None: the texts name none
    suffix: str  # the offset as written
    separator: str
    width: int  # characters of the longest clock part

    def write(self, times: Times) -> list[str]:
        """``times`` in the form of these."""
        unit = next(unit for width, unit in WRITTEN.items() if self.width <= width)
        texts = np.datetime_as_string(times, unit=unit).astype(f"U{self.width}").tolist()
        if self.separator != "T":
            texts = [text.replace("T", self.separator) for text in texts]
        return [text + self.suffix for text in texts]


def parse(texts: list[str], where: str, faults: Faults) -> Stamps | None:
    """Read ``texts``; faults are noted below the pointer ``where``, and then the result is None."""
    stamps = _alike(texts) or _one_by_one(texts, where, faults)
    if stamps is not None:
        later = np.diff(stamps.times) > np.timedelta64(0)
        if not later.all():
            faults.add_where(
                np.concatenate(([False], ~later)), where, "",
                lambda index: f"{texts[index]} is not later than the one before, {texts[index - 1]}",
            )  # fmt: skip
            return None
    return stamps


def parse_offset(text: str | None) -> int | None:
    """``Z`` or ``±hh:mm`` in minutes east of UTC."""
    if not text:
        return None
    if text == "Z":
        return 0
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return -minutes if text[0] == "-" else minutes


def spelled(offset: int | None) -> str:
    """An offset in words of an error message."""
    if offset is None:
        return "no offset"
    return f"offset {'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"


def _alike(texts: list[str]) -> Stamps | None:
    """The usual case, all texts written alike, as one array operation; None when it is not that case."""
    form = FORM.fullmatch(texts[0])
    width = len(texts[0])
    if form is None or len(set(map(len, texts))) > 1:
        return None
    joined = "".join(texts)
    if not joined.isascii():
        return None
    clock = form.end("clock")
    matrix = np.frombuffer(joined.encode("ascii"), np.uint8).reshape(-1, width)
    first = matrix[0]
    digits = (first >= ord("0")) & (first <= ord("9"))
    digits[clock:] = False
    if (matrix[:, ~digits] != first[~digits]).any() or (matrix[:, digits] - np.uint8(ord("0")) > 9).any():
        return None
    if int(min(texts)[:4]) < FIRST_YEAR or int(max(texts)[:4]) > LAST_YEAR:
        return None
    clocks = np.ascontiguousarray(matrix[:, :clock]).view(f"S{clock}").ravel()
    try:
        times = clocks.astype("datetime64[ns]")
    except ValueError:  # a day or an hour that does not exist: read one by one to name it
        return None
    suffix = form["offset"] or ""
    return Stamps(times, parse_offset(suffix), suffix, form["separator"] or "T", clock)


def _one_by_one(texts: list[str], where: str, faults: Faults) -> Stamps | None:
    clean = faults.total
    times: list[np.datetime64] = []
    forms: list[re.Match[str]] = []
    for index, text in enumerate(texts):
        form = FORM.fullmatch(text)
        time = _time(form["clock"]) if form else None
        if form is None or time is None:
            faults.add(f"{where}/{index}", f"{text[:40]!r} {NOT_A_STAMP}")
        elif not FIRST_YEAR <= int(text[:4]) <= LAST_YEAR:
            faults.add(f"{where}/{index}", f"the year must be {FIRST_YEAR} to {LAST_YEAR}")
        else:
            if forms and parse_offset(form["offset"]) != parse_offset(forms[0]["offset"]):
                found, wanted = spelled(parse_offset(form["offset"])), spelled(parse_offset(forms[0]["offset"]))
                faults.add(f"{where}/{index}", f"has {found}, those before have {wanted}; a series has one")
            times.append(time)
            forms.append(form)
    if faults.total > clean:
        return None
    widest, last = max(form.end("clock") for form in forms), forms[-1]["offset"] or ""
    separator = next((form["separator"] for form in forms if form["separator"]), "T")
    return Stamps(np.array(times, "datetime64[ns]"), parse_offset(last), last, separator, widest)


def _time(clock: str) -> np.datetime64 | None:
    try:
        return np.datetime64(clock, "us" if not FIRST_YEAR <= int(clock[:4]) <= LAST_YEAR else "ns")
    except ValueError:
        return None
