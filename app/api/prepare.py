"""Request → work: the bounds set by settings and model, and the times to forecast.

Knows: what may be asked of one series. Does not know: HTTP, JSON, the engine; candles are ``history``'s.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.api.faults import Faults
from app.api.history import read_history
from app.api.schema import DEFAULT_HORIZON, ForecastItem, Notice, Overrides, Series
from app.api.stamps import LAST_YEAR, Stamps, parse, spelled
from app.model.frames import COLUMNS, Normalised, stamp_features
from app.work import Embed, Forecast

SEED_BITS: Final = 53  # a drawn seed survives readers that hold numbers as doubles


@dataclass(frozen=True)
class Bounds:
    """What one request may ask for; from the settings and the model."""

    max_candles: int
    max_horizon: int
    max_samples: int
    max_items: int
    max_work: int  # sample paths × steps
    max_timeout: float  # seconds
    max_context: int  # candles
    vocabulary: int  # s1 tokens


@dataclass(frozen=True)
class PreparedForecast:
    """Work for the engine, and what the answer needs besides the outcome."""

    work: Forecast
    scale: Normalised
    timestamps: list[str]
    asked: ForecastItem
    warnings: list[Notice]

    @property
    def units(self) -> int:
        """Sample paths × steps."""
        return self.work.sample_count * len(self.timestamps)

    @property
    def numbers(self) -> int:
        """Numbers in the answer, those of quantiles and paths included."""
        asked = self.asked
        paths = self.work.sample_count if asked.return_paths else 0
        return len(COLUMNS) * len(self.timestamps) * (1 + len(asked.quantiles or ()) + paths)

    @property
    def repeatable(self) -> bool:
        """True if the same request would get the same answer: its seed was not drawn here."""
        return self.asked.overrides.seed is not None


@dataclass(frozen=True)
class PreparedEmbedding:
    """Work for the engine, and what the answer needs besides the outcome."""

    work: Embed
    series_id: str | None
    warnings: list[Notice]
    units: int = 1
    numbers: int = 1024
    """Numbers in the answer, about: the widest published model has 832."""
    repeatable: bool = True


def prepare_forecast(item: ForecastItem, bounds: Bounds, prefix: str = "") -> PreparedForecast:
    """Check ``item`` and build its work. Raises InvalidInput naming every offending element below ``prefix``."""
    faults = Faults(prefix)
    history = read_history(item, bounds.max_candles, faults)
    _check_sampling(item, bounds, faults)
    future = _future(item, history.stamps if history else None, bounds, faults)
    if faults or history is None or future is None:
        raise faults.error()
    chosen = item.overrides
    work = Forecast(
        history=history.scale.x,
        history_stamps=history.features,
        future_stamps=stamp_features(future.times),
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        sample_count=chosen.sample_count,
        seed=secrets.randbits(SEED_BITS) if chosen.seed is None else chosen.seed,
    )
    texts = item.prediction_timestamps or future.write(future.times)
    notices = history.notices + _window_notice(len(item.candles), bounds)
    return PreparedForecast(work, history.scale, texts, item, notices)


def prepare_embedding(item: Series, bounds: Bounds, prefix: str = "") -> PreparedEmbedding:
    """Check ``item`` and build its work. Raises InvalidInput naming every offending element below ``prefix``."""
    faults = Faults(prefix)
    history = read_history(item, bounds.max_candles, faults)
    if history is None:
        raise faults.error()
    notices = history.notices + _window_notice(len(item.candles), bounds)
    return PreparedEmbedding(Embed(history.scale.x, history.features), item.series_id, notices)


def _check_sampling(item: ForecastItem, bounds: Bounds, faults: Faults) -> None:
    chosen = item.overrides
    if chosen.sample_count > bounds.max_samples:
        faults.add("/overrides/sample_count", f"is above the limit of {bounds.max_samples} sample paths")
    if chosen.top_k > bounds.vocabulary:
        faults.add("/overrides/top_k", f"is above the vocabulary of {bounds.vocabulary} tokens")
    quantiles = item.quantiles or []
    for index in range(1, len(quantiles)):
        if quantiles[index] <= quantiles[index - 1]:
            faults.add(f"/quantiles/{index}", "is not above the one before; quantiles ascend")


def _future(item: ForecastItem, stamps: Stamps | None, bounds: Bounds, faults: Faults) -> Stamps | None:
    """The times to forecast; None with a fault noted when they cannot be known."""
    given, chosen = item.prediction_timestamps, item.overrides
    horizon = _horizon(given, chosen, bounds)
    where = "/overrides/pred_len" if given is None or chosen.pred_len is not None else "/prediction_timestamps"
    longest = min(bounds.max_horizon, bounds.max_context)
    if horizon > longest:
        faults.add(where, f"the horizon of {horizon} candles is above the limit of {longest}")
        return None
    if given is None:
        return None if stamps is None else _continue(stamps, horizon, faults)
    if horizon != len(given):
        faults.add("/overrides/pred_len", f"is {horizon}, but prediction_timestamps has {len(given)} elements")
    future = parse(given, "/prediction_timestamps", faults)
    if future is None or stamps is None:
        return None
    if future.offset != stamps.offset:
        faults.add("/prediction_timestamps/0", f"has {spelled(future.offset)}, timestamps have {spelled(stamps.offset)}")
    elif future.times[0] <= stamps.times[-1]:
        faults.add("/prediction_timestamps/0", f"is not later than the last of timestamps, {item.timestamps[-1]}")
    return future


def _horizon(given: list[str] | None, chosen: Overrides, bounds: Bounds) -> int:
    if chosen.pred_len is not None:
        return chosen.pred_len
    return len(given) if given is not None else min(DEFAULT_HORIZON, bounds.max_horizon, bounds.max_context)


def _continue(stamps: Stamps, horizon: int, faults: Faults) -> Stamps | None:
    """``horizon`` times after ``stamps`` at their own spacing, which must be uniform."""
    steps = np.diff(stamps.times)
    if len(steps) == 0:
        faults.add("/prediction_timestamps", "one candle has no spacing: send prediction_timestamps")
        return None
    odd = np.flatnonzero(steps != steps[0])
    if len(odd):
        faults.add(
            "/prediction_timestamps",
            f"timestamps are not uniformly spaced ({_seconds(steps[0])} s, but {_seconds(steps[odd[0]])} s before "
            f"timestamps/{odd[0] + 1}), so the times to forecast cannot be known: send prediction_timestamps",
        )
        return None
    room = np.datetime64(f"{LAST_YEAR + 1}-01-01", "ns") - stamps.times[-1]
    if room // horizon < steps[0]:
        faults.add("/prediction_timestamps", f"the forecast would pass the year {LAST_YEAR}")
        return None
    times = stamps.times[-1] + steps[0] * np.arange(1, horizon + 1)
    return Stamps(times, stamps.offset, stamps.suffix, stamps.separator, stamps.width)


def _seconds(step: np.timedelta64) -> str:
    return f"{step / np.timedelta64(1, 's'):g}"


def _window_notice(count: int, bounds: Bounds) -> list[Notice]:
    if count <= bounds.max_context:
        return []
    detail = f"the scale comes from all candles, the model saw the last {bounds.max_context}"
    return [Notice("window_cut", detail, count - bounds.max_context)]
