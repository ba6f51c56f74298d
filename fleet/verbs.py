"""The verbs: each narrates, decides, and leaves the doing to the runtime.

Knows: what the operator wants and is told, the same for every runtime. Does not know: processes, containers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping

from rich.live import Live

from fleet import watch
from fleet.desk import Desk, uninterrupted
from fleet.errors import BadSetting, NotUp
from fleet.runtime import Front, Runtime

MOST_WORKERS = 64
CLIENT_TIMEOUT_S = 60.0
"""Patience with a server whose settings are not known here."""


def up(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """Start what is missing, wait until it serves, prove it with one forecast."""
    began = time.monotonic()
    front = runtime.up(options)
    if options.dry_run:
        return
    if front is not None:
        desk.say(f"Up after {time.monotonic() - began:.1f} s: {front.url}", "green")
        prove(desk, runtime, front)
    desk.say(f"Next: {runtime.command} status · predict FILE.csv --plot out.png · scale N · roll · down")


def prove(desk: Desk, runtime: Runtime, front: Front) -> None:
    """One forecast to see that all of it works; when it does not, nothing is left running."""
    from fleet import forecast  # not above: it needs pandas, half a second

    try:
        forecast.show_example(desk, front)
    except BaseException:
        with uninterrupted():
            runtime.abandon()
        raise


def down(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """Stop everything; nothing to stop is fine too."""
    if not runtime.down(options):
        desk.say("Nothing is running")
    elif not options.dry_run:
        desk.say("Down: nothing is left running", "green")


def scale(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """Another number of workers, without losing a request."""
    if not 1 <= options.workers <= MOST_WORKERS:
        raise BadSetting(f"{options.workers} workers is not between 1 and {MOST_WORKERS}", f"{runtime.command} scale 5")
    before = runtime.scale(options.workers)
    if not options.dry_run:
        desk.say(f"Scaled from {before} to {options.workers} workers", "green")


def roll(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """Workers of the settings, code and checkpoint of now in the place of all that run, without losing a request."""
    began = time.monotonic()
    runtime.roll(options)
    if not options.dry_run:
        desk.say(f"Rolled after {time.monotonic() - began:.1f} s: all {runtime.front().workers} workers are new", "green")


def status(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """What runs, and how it does."""
    front = runtime.front()
    if options.watch and not options.json:
        watch_status(desk, runtime)
        return
    looking = watch.Watch.begin(runtime)
    rows = looking.measure()
    if options.json:
        sys.stdout.write(json.dumps(watch.as_document(front, rows), indent=1) + "\n")
        return
    desk.console.print(watch.table(front, rows))
    if advice := runtime.advice(looking.looks):
        desk.say(advice, "red")


def watch_status(desk: Desk, runtime: Runtime) -> None:
    """The live table, until Ctrl-C or until the fleet is gone."""
    looking = watch.Watch.begin(runtime)
    with Live(console=desk.console, auto_refresh=False) as live:
        while True:
            try:
                live.update(watch.table(runtime.front(), looking.measure()), refresh=True)
            except NotUp:
                return


def logs(_desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """The last lines of one log or of all, and what follows."""
    name = f"worker-{options.name}" if options.name and options.name.isdigit() else options.name
    for each, line in runtime.logs(name, options.lines, options.follow):
        print(f"{each:<13} | {line}", flush=True)


def predict(desk: Desk, runtime: Runtime, options: argparse.Namespace) -> None:
    """Candles in, forecast out: a table, a picture, a file."""
    from fleet import forecast  # not above: it needs pandas, half a second

    url, patience_s = options.url, CLIENT_TIMEOUT_S
    if url is None:
        front = runtime.front()
        url, patience_s = front.url, front.patience_s
    forecast.predict(desk, options, url, patience_s)


VERBS: Mapping[str, Callable[[Desk, Runtime, argparse.Namespace], None]] = {
    verb.__name__: verb for verb in (up, down, scale, roll, status, logs, predict)
}
