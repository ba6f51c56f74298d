"""What people ask a prediction log, by name, and the views that their own SQL can use too.

Times of steps and of truth are the wall clock of the series' own timestamps; ``answered`` is UTC. Milliseconds, unless a
column says otherwise; errors are in the units of the series. Scores take each computed forecast once: answers that the
cache gave again are left out.
Knows: SQL. Does not know: who runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COLUMNS: Final = ("open", "high", "low", "close", "volume", "amount")
_VALUES: Final = ", ".join(f"unnest({name}) AS {name}" for name in COLUMNS)
_LEVELS: Final = ", ".join(f"unnest(of.{name}) AS {name}" for name in COLUMNS)
_ABOUT: Final = "record_id, request_id, series_id, model_version, answered, cache, horizon"

VIEWS: Final = {
    "steps": f"""
        SELECT {_ABOUT}, unnest(range(1, horizon + 1)) AS step, unnest(timestamps) AS time, {_VALUES}
        FROM predictions""",
    "bands": f"""
        SELECT {_ABOUT}, of.level AS level, unnest(range(1, horizon + 1)) AS step, unnest(timestamps) AS time, {_LEVELS}
        FROM (SELECT {_ABOUT}, timestamps, unnest(quantiles) AS of FROM predictions)""",
}
"""``steps``: a row for each step of each forecast. ``bands``: for each step and quantile level."""


@dataclass(frozen=True)
class Question:
    """``needs``: options that are $name in the SQL; ``instant``: its time is UTC; ``{column}`` is one of ``COLUMNS``."""

    about: str
    sql: str
    needs: tuple[str, ...] = ()
    instant: bool = False
    truth: bool = False


QUESTIONS: Final = {
    "latency": Question(
        "forecasts and milliseconds by hour and model: p50, p95, p99 of what the engine took, hits of the cache apart",
        """
        SELECT date_trunc('hour', answered) AS hour, model_version, count(*) AS forecasts,
               count(*) FILTER (WHERE cache = 'hit') AS hits,
               quantile_cont(total_ms, 0.5) FILTER (WHERE cache <> 'hit') AS p50_ms,
               quantile_cont(total_ms, 0.95) FILTER (WHERE cache <> 'hit') AS p95_ms,
               quantile_cont(total_ms, 0.99) FILTER (WHERE cache <> 'hit') AS p99_ms
        FROM predictions GROUP BY ALL ORDER BY ALL""",
    ),
    "stages": Question(
        "milliseconds of each stage by hour: mean and p95",
        """
        SELECT hour, stage.key AS stage, count(*) AS forecasts, avg(stage.value) AS mean_ms,
               quantile_cont(stage.value, 0.95) AS p95_ms
        FROM (SELECT date_trunc('hour', answered) AS hour, unnest(map_entries(stages_ms)) AS stage FROM predictions)
        GROUP BY ALL ORDER BY ALL""",
    ),
    "series": Question(
        "which series were forecast: how often, when, how far",
        """
        SELECT series_id, count(*) AS forecasts, min(answered) AS first, max(answered) AS last,
               max(horizon) AS longest_horizon, count(DISTINCT model_version) AS models
        FROM predictions GROUP BY ALL ORDER BY ALL""",
    ),
    "at": Question(
        "what was forecast for --series at --time (of its own clock), newest forecast first",
        """
        SELECT answered, step, open, high, low, close, volume, amount, model_version, record_id
        FROM steps WHERE series_id = $series AND time = $time ORDER BY answered DESC, record_id""",
        ("series", "time"),
    ),
    "made": Question(
        "the last forecast for --series that was answered until --time (UTC), step by step",
        """
        SELECT answered, step, time, open, high, low, close, volume, amount, model_version, record_id
        FROM steps WHERE record_id = (
            SELECT record_id FROM predictions WHERE series_id = $series AND answered <= timezone('UTC', $time)
            ORDER BY answered DESC, record_id LIMIT 1)
        ORDER BY step""",
        ("series", "time"),
        instant=True,
    ),
    "error": Question(
        "error of --column against --truth, by series, model and step: MAE, RMSE, bias (forecast - truth), MAPE in %",
        """
        SELECT steps.series_id, model_version, step, count(*) AS forecasts,
               avg(abs(steps.{column} - truth.{column})) AS mae,
               sqrt(avg((steps.{column} - truth.{column}) ** 2)) AS rmse,
               avg(steps.{column} - truth.{column}) AS bias,
               100 * avg(abs(steps.{column} - truth.{column}) / nullif(abs(truth.{column}), 0)) AS mape_percent
        FROM steps JOIN truth ON steps.series_id = truth.series_id AND steps.time = truth.time
        WHERE cache IN ('miss', 'bypass') AND truth.{column} IS NOT NULL GROUP BY ALL ORDER BY ALL""",
        truth=True,
    ),
    "coverage": Question(
        "how often --truth of --column was within the interval of two opposite quantiles, by series, model and step",
        """
        SELECT low.series_id, low.model_version, low.step, low.level AS lower, high.level AS upper,
               high.level - low.level AS nominal, count(*) AS forecasts,
               avg((truth.{column} BETWEEN low.{column} AND high.{column})::INT) AS coverage,
               avg(high.{column} - low.{column}) AS width
        FROM bands AS low JOIN bands AS high ON low.record_id = high.record_id AND low.step = high.step
             JOIN truth ON low.series_id = truth.series_id AND low.time = truth.time
        WHERE low.cache IN ('miss', 'bypass') AND truth.{column} IS NOT NULL
              AND low.level < 0.5 AND abs(low.level + high.level - 1) < 1e-9 GROUP BY ALL ORDER BY ALL""",
        truth=True,
    ),
}
