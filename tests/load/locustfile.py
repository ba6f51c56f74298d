"""The load for those who use Locust: `python -m locust -f tests/load/locustfile.py --headless --scenario burst`.

400 candles → 120, three single requests to one batch of three; every answer is checked for content. It ends with 1 when one
failed. The k6 scripts beside it do more.
Knows: users and what a right answer is. Does not know: how load is measured.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import uuid
from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from locust import FastHttpUser, LoadTestShape, between, events, task

LOOKBACK: Final = 400  # candles
HORIZON: Final = 120  # candles
BATCH: Final = 3  # series
COLUMNS: Final = ("open", "high", "low", "close", "volume", "amount")
PRICES: Final = COLUMNS[:4]
GRID_START: Final = datetime(2024, 6, 1, tzinfo=UTC)
GRID_STEP: Final = timedelta(minutes=5)  # unbroken, unlike the file's own times: so the server can continue the series
TIMEOUT_S: Final = 30.0
KEY: Final = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("FLEET_API_KEY")) else {}
# Users and seconds of each scenario.
SCENARIOS: Final[Mapping[str, tuple[int, float]]] = {"steady": (10, 300), "burst": (100, 60), "sustained": (50, 900)}

with (Path(__file__).parents[1] / "data" / "candles.csv").open(newline="") as file:
    CANDLES: Final = [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]


def stamps(first: int, count: int) -> list[str]:
    """``count`` times of the grid from its place ``first``."""
    return [f"{GRID_START + (first + k) * GRID_STEP:%Y-%m-%dT%H:%M:%SZ}" for k in range(count)]


def series() -> tuple[dict[str, Any], list[str]]:
    """A random window of the candles as a series to forecast, and the times its forecast must have."""
    first = random.randrange(len(CANDLES) - LOOKBACK + 1)
    asked = {
        "series_id": f"window-{first}-{uuid.uuid4().hex[:8]}", "candles": CANDLES[first : first + LOOKBACK],
        "timestamps": stamps(first, LOOKBACK), "overrides": {"pred_len": HORIZON, "seed": first},
    }  # fmt: skip
    return asked, stamps(first + LOOKBACK, HORIZON)


def fault(asked: Mapping[str, Any], times: list[str], found: Mapping[str, Any]) -> str:
    """What is wrong with the answer to one series, "" for nothing."""
    if found.get("series_id") != asked["series_id"]:
        return f"series_id is {found.get('series_id')}"
    rows = found.get("prediction", [])
    if [row["timestamp"] for row in rows] != times:
        return f"{len(rows)} candles that do not continue the series"
    values = [[row[name] for name in COLUMNS] for row in rows]
    if not all(isinstance(value, int | float) and math.isfinite(value) for row in values for value in row):
        return "a value is not a finite number"
    return "" if all(row[name] > 0 for row in rows for name in PRICES) else "a price is not positive"


class Trader(FastHttpUser):
    """Asks, looks at the forecast for a moment, asks again."""

    host = "http://127.0.0.1:8080"
    wait_time = between(0.5, 2.0)
    network_timeout = connection_timeout = TIMEOUT_S + 10  # longer than the server's, whose answer says more

    @task(3)
    def single(self) -> None:
        """One series."""
        asked, times = series()
        self.ask("/v1/predict/single", {**asked, "timeout": TIMEOUT_S}, lambda answer: fault(asked, times, answer))

    @task(1)
    def batch(self) -> None:
        """Three series in one request."""
        members = [series() for _ in range(BATCH)]

        def judge(answer: Mapping[str, Any]) -> str:
            items = answer.get("items", [])
            if len(items) != BATCH:
                return f"{len(items)} items"
            return next(filter(None, (fault(*member, item) for member, item in zip(members, items, strict=True))), "")

        self.ask("/v1/predict/batch", {"items": [asked for asked, _ in members], "timeout": TIMEOUT_S}, judge)

    def ask(self, path: str, document: Mapping[str, Any], judge: Any) -> None:
        """One request; Locust counts it as failed when anything is wrong with the answer."""
        request_id = f"locust-{uuid.uuid4().hex[:16]}"
        headers = {"Content-Type": "application/json", "X-Request-ID": request_id, **KEY}
        with self.client.post(path, data=json.dumps(document), headers=headers, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            try:
                answer = json.loads(response.text or "")
                wrong = judge(answer) or ("" if answer["request_id"] == request_id else "another request_id")
            except (ValueError, KeyError, TypeError) as error:
                wrong = f"not an answer: {error!r}"
            if wrong:
                response.failure(wrong)


class Scenario(LoadTestShape):
    """All users at once, for as long as the scenario lasts."""

    def tick(self) -> tuple[int, float] | None:
        """Users and how many begin in a second; None at the end."""
        options = self.runner.environment.parsed_options if self.runner else None
        users, seconds = SCENARIOS[options.scenario if options else "steady"]
        asked = options.seconds if options else None
        spent: float = self.get_run_time()  # type: ignore[no-untyped-call]  # Locust gives it no type
        return None if spent >= (asked or seconds) else (users, users)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # nor this
def add_options(parser: ArgumentParser) -> None:
    """Locust's own --users and --run-time do not apply: the scenario says."""
    parser.add_argument("--scenario", choices=SCENARIOS, default="steady", help="10, 100 or 50 users for 5, 1 or 15 minutes")
    parser.add_argument("--seconds", type=float, help="another duration")
