"""Asking the fleet for a forecast, and showing it.

Knows: the HTTP exchange, tables on the screen. Does not know: where the candles come from.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from rich.table import Table

from fleet import key
from fleet.candles import Question, forecast_table, frame, read, request_document
from fleet.desk import Desk
from fleet.errors import BadSetting, RequestFailed
from fleet.host import Answer, request
from fleet.runtime import Front

EXAMPLE = "examples/candles-5m.csv"
EXAMPLE_QUESTION = Question(horizon=24, samples=8, seed=7, quantiles=(0.1, 0.9), series_id="example")
EXAMPLE_ROWS = 6
CONE = (0.05, 0.25, 0.5, 0.75, 0.95)
ROUTE = "/v1/predict/single"
CLIENT_MARGIN_S = 10.0
"""The client waits longer than nginx, nginx longer than the worker: the innermost answer is the most precise."""


def show_example(desk: Desk, front: Front) -> None:
    """One real forecast of the bundled candles, through nginx."""
    history = read(desk.folders.root / EXAMPLE)
    answer = ask(front.url, history, EXAMPLE_QUESTION, front.patience_s)
    document = json.loads(answer.body)
    question = EXAMPLE_QUESTION
    desk.say(f"\n{EXAMPLE}: {question.horizon} candles after these {len(history)}, {question.samples} sample paths")
    desk.console.print(table(document, EXAMPLE_ROWS))
    desk.say(provenance(answer, document) + "\n")


def predict(desk: Desk, options: argparse.Namespace, url: str, timeout_s: float) -> None:
    """Read, ask, show, draw, write: what the options say."""
    source, out = Path(options.table), Path(options.out) if options.out else None
    if out and out.suffix not in {".csv", ".json"}:
        raise BadSetting(f"--out {out} ends neither in .csv nor in .json", "python -m fleet predict … --out forecast.csv")
    history = read(source, options.lookback)
    question = Question(options.horizon, options.samples, options.seed, options.temperature, options.top_p, CONE, source.stem)
    answer = ask(url, history, question, timeout_s)
    document = json.loads(answer.body)
    desk.console.print(table(document, max(8, shutil.get_terminal_size().lines - 8)))
    desk.say(provenance(answer, document))
    for warning in document.get("warnings", []):
        desk.say(f"{warning['code']}: {warning['detail']}", "yellow")
    if out:
        write(out, answer, document)
        desk.say(f"Written: {out}")
    if options.plot:
        plot(Path(options.plot), history, document, question)
        desk.say(f"Drawn: {options.plot}")


def ask(url: str, candles: pd.DataFrame, question: Question, timeout_s: float) -> Answer:
    """One forecast. Raises RequestFailed with the server's own words, BadSetting for a url that is none."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise BadSetting(f"{url} is not an address such as http://127.0.0.1:8080", "python -m fleet predict … --url")
    body = json.dumps(request_document(candles, question), allow_nan=False).encode()
    limit_s = timeout_s + CLIENT_MARGIN_S
    answer = request(parts.hostname, parts.port or 80, "POST", ROUTE, body=body, headers=key.headers(), timeout_s=limit_s)
    if answer is None:
        raise RequestFailed(f"nobody answers on {url}", "python -m fleet status")
    if answer.status == 401:
        raise RequestFailed(problem(answer), f"{key.VARIABLE}=KEY python -m fleet predict …")
    if answer.status != 200:
        raise RequestFailed(problem(answer), "python -m fleet predict --help" if answer.status == 422 else "python -m fleet logs")
    return answer


def problem(answer: Answer) -> str:
    """A refusal in one sentence: status, title, detail and the first offending elements."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return f"{answer.status}: {answer.body[:200].decode(errors='replace')}"
    errors = "".join(f"; {entry['pointer']}: {entry['detail']}" for entry in document.get("errors", [])[:3])
    return f"{answer.status} {document.get('title')}: {document.get('detail')}{errors}"


def table(document: Mapping[str, Any], rows: int) -> Table:
    """The forecast's candles with the cone's edges, the middle ones left out when there are more than ``rows``."""
    prediction = frame(document["prediction"])
    quantiles = sorted(document.get("quantiles", {}), key=float)
    edges = [quantiles[0], quantiles[-1]] if len(quantiles) > 1 else quantiles
    cone = {f"{100 * float(q):g} %": frame(document["quantiles"][q])["close"] for q in edges}
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("time", no_wrap=True)
    for name in ("open", "high", "low", "close", *cone, "volume"):
        shown.add_column(name, justify="right", no_wrap=True)
    first = rows // 2 if len(prediction) > rows else len(prediction)
    for position, (moment, candle) in enumerate(zip(prediction.index, prediction.to_dict("records"), strict=True)):
        if position == first and len(prediction) > rows:
            shown.add_row("…")
        if first <= position < len(prediction) - (rows - first):
            continue
        numbers = [candle[name] for name in ("open", "high", "low", "close")]
        numbers += [close.iloc[position] for close in cone.values()]
        shown.add_row(f"{moment:%Y-%m-%d %H:%M}", *map(short, [*numbers, candle["volume"]]))
    return shown


def short(number: float) -> str:
    """Five digits, or the whole part when that has more."""
    return f"{number:,.0f}" if abs(number) >= 1e5 else f"{number:,.5g}"


def provenance(answer: Answer, document: Mapping[str, Any]) -> str:
    """Who answered, with what, and the milliseconds of each stage."""
    stages = {name: ms for name, ms in document.get("timings", {}).items() if isinstance(ms, int | float)}
    times = ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items() if not isinstance(ms, bool))
    model = document.get("model_version", "unknown model")
    return f"served by {answer.headers.get('x-served-by', '?')} with {model}\nmilliseconds: {times}"


def write(path: Path, answer: Answer, document: Mapping[str, Any]) -> None:
    """The whole answer (.json), or the forecast as a table."""
    if path.suffix == ".json":
        path.write_bytes(answer.body)
    else:
        forecast_table(document).to_csv(path)


def plot(path: Path, history: pd.DataFrame, document: Mapping[str, Any], question: Question) -> None:
    """Draw history and forecast. Raises BadSetting for an ending that is no picture."""
    from fleet import (
        picture,  # matplotlib takes half a second to import; only pictures need it
    )

    prediction = frame(document["prediction"])
    quantiles = {float(q): frame(rows) for q, rows in document.get("quantiles", {}).items()}
    title = f"{document.get('series_id') or 'series'}: the next {len(prediction)} candles"
    subtitle = (
        f"{question.samples} sample paths, temperature {question.temperature:g}, top_p {question.top_p:g}, "
        f"seed {document.get('seed')} · {document.get('model_version', '')} · sample quantiles, not confidence intervals"
    )
    try:
        picture.draw(path, history, prediction, quantiles, title, subtitle)
    except ValueError as error:
        raise BadSetting(f"cannot draw {path}: {error}", "python -m fleet predict … --plot out.png") from error
