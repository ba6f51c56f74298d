"""The verb ``log``: options in, the right module called, the answer shown.

Knows: argparse, tables on a screen. Does not know: SQL, files.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fleet.errors import BadSetting
from fleet.log.questions import COLUMNS, QUESTIONS, Question

# Arrow and DuckDB are imported where they are used: no other verb should wait for them.
if TYPE_CHECKING:
    import pyarrow as pa

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

VARIABLE: Final = "KRONOS_PREDICTION_LOG"
MOST_ROWS: Final = 200
"""Rows of a table on a screen; --csv and --json give all."""
WIDE: Final = 400
"""Characters of a line that no screen shows."""
EXAMPLE: Final = "python -m fleet log query --named latency"


def add_verbs(verb: Subparsers) -> None:
    """Add ``log`` to a command line; ``run`` does what was asked."""
    log = verb.add_parser("log", help="the prediction log: ask it, compact it")
    what = log.add_subparsers(dest="log_verb", required=True, metavar="WHAT")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--at", metavar="PLACE", help=f"folder or s3://BUCKET/PREFIX (default: {VARIABLE})")

    names = "; ".join(f"{name}: {question.about.replace('%', '%%')}" for name, question in QUESTIONS.items())
    query = what.add_parser("query", parents=[place], help="SQL over the views predictions, steps and bands", epilog=names)
    query.add_argument("sql", nargs="?", metavar="SQL", help="such as 'SELECT count(*) FROM predictions'")
    query.add_argument("--named", choices=list(QUESTIONS), metavar="NAME", help=f"a question of ours: {', '.join(QUESTIONS)}")
    query.add_argument("--series", metavar="ID", help="series_id of the requests")
    query.add_argument("--time", metavar="TIME", help="such as 2026-11-21T10:00")
    query.add_argument("--truth", metavar="FILE", type=Path, help="CSV or Parquet of the candles that came, of --series")
    query.add_argument("--column", choices=COLUMNS, default="close", help="what error and coverage look at (default: close)")
    shape = query.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="a list of objects")
    shape.add_argument("--csv", action="store_true", help="with a header")

    help_ = "merge the small files of hours that are over; safe at any time, while workers write and others read"
    merge = what.add_parser("compact", parents=[place], help=help_)
    merge.add_argument("--alone", action="store_true", help="do not look for another compaction: you know that none runs")


def run(options: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Do what was asked. Raises FleetError."""
    from fleet.log.files import Files

    place = options.at or env.get(VARIABLE)
    if not place:
        raise BadSetting(f"which log? {VARIABLE} is not set", "add --at FOLDER, or --at s3://BUCKET/PREFIX")
    {"query": query, "compact": compact}[options.log_verb](Files(place, env), options)


def compact(files: Any, options: argparse.Namespace) -> None:
    """Compact, and say what came of it."""
    from rich.filesize import decimal

    from fleet.log import compact as compaction

    done = compaction.compact(files, datetime.now(UTC), say, assured=options.alone)
    if not done.files:
        say("Nothing to compact: no hour that is over has two small files")
        return
    saved = f"{decimal(done.bytes_before)} → {decimal(done.bytes_after)}"
    say(f"Compacted {done.files} files into {done.into} in {done.folders} folders: {done.rows} rows, {saved}")


def query(files: Any, options: argparse.Namespace) -> None:
    """Ask, and show the answer."""
    from fleet.log import query as asking

    if (options.sql is None) == (options.named is None):
        raise BadSetting("either SQL or --named NAME", EXAMPLE)
    question = QUESTIONS[options.named] if options.named else Question("", options.sql)
    values = given(question, options)
    truth = None
    if options.truth:
        from fleet.log.truth import read

        if not options.series:
            raise BadSetting("--truth is of one series: which?", "add --series ID")
        truth = read(options.truth, options.series)
    elif question.truth:
        raise BadSetting(f"--named {options.named} needs the truth", "add --truth FILE --series ID")
    sql = question.sql.format(column=options.column) if question.truth else question.sql
    show(asking.ask(files, sql, values, truth), options)


def given(question: Question, options: argparse.Namespace) -> dict[str, Any]:
    """What the question wants to know. Raises BadSetting for what is missing or no time."""
    values: dict[str, Any] = {}
    for name in question.needs:
        if getattr(options, name) is None:
            raise BadSetting(f"--named {options.named} needs --{name}", f"add --{name} " + {"time": "TIME"}.get(name, "ID"))
        values[name] = getattr(options, name)
    if "time" in values:
        values["time"] = clock(values["time"], question.instant)
    return values


def clock(time: str, instant: bool) -> datetime:
    """What a clock shows at ``time``: that of the text, or for an instant one in UTC. Raises BadSetting."""
    try:
        found = datetime.fromisoformat(time)
    except ValueError as error:
        raise BadSetting(f"{time} is no time", "like --time 2026-11-21T10:00") from error
    return (found.astimezone(UTC) if instant and found.tzinfo else found).replace(tzinfo=None)


def show(answer: pa.Table, options: argparse.Namespace) -> None:
    """As a table for people, or as CSV or JSON for programs."""
    if options.json:
        say(json.dumps(listed(answer), default=text, indent=1))
    elif options.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(answer.column_names)
        writer.writerows([cell(value) for value in row.values()] for row in listed(answer))
    else:
        draw(answer)


def draw(answer: pa.Table) -> None:
    """A table on the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*answer.column_names, box=None)
    for row in listed(answer.slice(0, MOST_ROWS)):
        table.add_row(*(f"{value:.6g}" if isinstance(value, float) else str(cell(value)) for value in row.values()))
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    if answer.num_rows > MOST_ROWS:
        console.print(f"{answer.num_rows - MOST_ROWS} rows more: --csv or --json shows all")


def listed(answer: pa.Table) -> list[dict[str, Any]]:
    """Rows as objects."""
    rows: list[dict[str, Any]] = answer.to_pylist(maps_as_pydicts="strict")
    return rows


def cell(value: Any) -> Any:
    """One value in a line of text."""
    if isinstance(value, list | dict):
        return json.dumps(value, default=text)
    return "" if value is None else text(value) if isinstance(value, datetime | Decimal) else value


def text(value: Any) -> str | int | float:
    """Times as ISO 8601, with Z where they are instants; a sum of integers, which comes as a decimal, as a number."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


def say(line: str) -> None:
    """For people and for logs."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
