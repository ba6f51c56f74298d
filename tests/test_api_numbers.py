"""Numbers and times in the answer: what is written reads back as what was meant."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import stamps
from app.api.answer import mend, shortest
from app.api.faults import Faults
from app.api.stamps import parse, parse_offset

SINGLES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
MOMENTS = st.lists(
    st.datetimes(datetime(1678, 1, 2), datetime(2261, 12, 30)).map(lambda moment: moment.replace(microsecond=0)),
    min_size=1, max_size=20, unique=True,
).map(sorted)  # fmt: skip
SUFFIXES = st.sampled_from(["", "Z", "+00:00", "-05:00", "+0530", "+14:00"])


@given(SINGLES)
def test_a_written_number_reads_back_in_single_precision(values: list[float]) -> None:
    """No digit that matters is lost."""
    singles = np.array(values, np.float32)
    assert np.array_equal(shortest(singles).astype(np.float32), singles)


USUAL = st.floats(2**-10, 2**30, width=32)


def num_digits(text: str) -> int:
    return len(text.partition("e")[0].replace(".", "").strip("0"))


@given(USUAL)
def test_a_number_is_written_with_as_few_digits_as_it_needs(value: float) -> None:
    """A price of 11.27 is answered as 11.27, not as 11.270000457763672."""
    single = np.array([value], np.float32)
    assert num_digits(repr(float(shortest(single)[0]))) <= num_digits(str(single[0]))


@given(MOMENTS, SUFFIXES, st.sampled_from("T "))
def test_times_written_alike_are_read_as_one_by_one(moments: list[datetime], suffix: str, separator: str) -> None:
    """The fast way and the careful way read the same times, offset and form."""
    texts = [moment.isoformat(sep=separator) + suffix for moment in moments]
    faults = Faults()
    fast, careful = stamps._alike(texts), stamps._one_by_one(texts, "", faults)
    assert fast is not None and careful is not None and not faults
    assert np.array_equal(fast.times, careful.times)
    assert fast.times.tolist() == np.array(moments, "datetime64[ns]").tolist()
    assert (fast.offset, fast.suffix, fast.separator, fast.width) == (
        careful.offset, careful.suffix, careful.separator, careful.width,
    )  # fmt: skip
    assert fast.write(fast.times) == texts


@pytest.mark.parametrize(
    "text",
    ["2024-06-01", "2024-06-01T10:30", "2024-06-01 10:30:05", "2024-06-01T10:30:05.5", "2024-06-01T10:30:05.123456789Z",
     "2024-06-01T10:30:05+08:00", "2024-06-01T10:30:05-0330"],
)  # fmt: skip
def test_times_are_answered_in_the_form_they_came_in(text: str) -> None:
    """Precision, separator and offset of the question are those of the answer."""
    read = parse([text], "", Faults())
    assert read is not None
    assert read.write(read.times) == [text]


@pytest.mark.parametrize(("text", "minutes"), [("", None), ("Z", 0), ("+05:30", 330), ("-0500", -300), ("-00:00", 0)])
def test_offsets_are_minutes_east(text: str, minutes: int | None) -> None:
    """An offset is compared by its value, not by its spelling."""
    assert parse_offset(text) == minutes


def test_mending_stretches_high_and_low_and_lifts_sizes() -> None:
    """A mended candle holds its open and close between low and high, and has no negative size."""
    broken = np.array([[5, 4, 6, 7, -1, -2], [1, 2, 0.5, 1.5, 3, 4]], np.float32)
    mended = mend(broken)
    assert mended[0].tolist() == [5, 7, 4, 7, 0, 0]
    assert mended[1].tolist() == broken[1].tolist()
    assert broken[0].tolist() == [5, 4, 6, 7, -1, -2]
