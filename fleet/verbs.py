"""The verbs: each narrates, decides, and leaves the doing to the layers below.

Knows: what the operator wants and is told. Does not know: how argv are written or processes started.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from itertools import chain

from rich.live import Live

from fleet import commands, journal, nginx, plan, watch
from fleet.converge import converge, grace_s
from fleet.desk import Desk, uninterrupted
from fleet.errors import BadSetting, DifferentFleet, NotUp
from fleet.state import Fleet, load

NOW_S = 3.0
"""What ``down --now`` grants: enough to end in order, not enough to finish a forecast."""


def up(desk: Desk, options: argparse.Namespace) -> None:
    """Start what is missing, wait until it serves, prove it with one forecast."""
    fleet = running(desk)
    if fleet is not None:
        refuse_differences(fleet, options)
        mend(desk, fleet)
        return
    fleet = Fleet(plan.make(options, desk.env, desk.folders))
    nginx.check_port(desk, fleet)
    if fleet.plan.nginx_version < commands.KEEPALIVE_MIN_TIMEOUT_SINCE:
        desk.say("This nginx may lose a request whenever workers change; 1.27.4 and newer do not", "yellow")
    began = time.monotonic()
    try:
        fleet = converge(desk, fleet, fleet.plan.workers)
        if options.dry_run:
            return
        desk.say(f"Up after {time.monotonic() - began:.1f} s: {fleet.plan.url}", "green")
        from fleet import forecast  # not above: it needs pandas, half a second

        forecast.show_example(desk, fleet)
    except BaseException:
        with uninterrupted():
            if desk.fleet is not None:
                desk.say("Stopping what was started")
                stop_all(desk, desk.fleet, now=True)
        raise
    desk.say("Next: python -m fleet status · predict FILE.csv --plot out.png · scale N · down")


def running(desk: Desk) -> Fleet | None:
    """The remembered fleet if any process of it is alive."""
    fleet = load(desk.folders)
    if fleet is None or not any(desk.host.family(process) for process in fleet.processes.values()):
        return None
    desk.fleet = fleet
    return fleet


def refuse_differences(fleet: Fleet, options: argparse.Namespace) -> None:
    """Raises DifferentFleet when options were given that the running fleet does not have."""
    up_now = f"{len(fleet.workers)} workers are up on {fleet.plan.url}"
    if options.workers not in {None, len(fleet.workers)}:
        raise DifferentFleet(up_now, f"python -m fleet scale {options.workers}")
    settings = fleet.plan.settings
    asked = {
        "--port": (options.port, fleet.plan.port),
        "--host": (options.host, fleet.plan.host),
        "--model": (options.model and plan.resolved(options.model), settings.get("KRONOS_MODEL")),
        "--tokenizer": (options.tokenizer and plan.resolved(options.tokenizer), settings.get("KRONOS_TOKENIZER")),
        "--app": (options.app, fleet.plan.app),
    }
    for name, (wanted, has) in asked.items():
        if wanted is not None and wanted != has:
            raise DifferentFleet(f"{up_now} with {name} {has or '(default)'}", "python -m fleet down, then up again")


def mend(desk: Desk, fleet: Fleet) -> None:
    """Bring up what is missing of a running fleet."""
    sound = [worker for worker in fleet.workers if desk.host.alive(worker.process)]
    whole = fleet.nginx is not None and desk.host.alive(fleet.nginx) and not fleet.leaving
    if whole and len(sound) == fleet.plan.workers:
        desk.say(f"Already up: {len(sound)} workers on {fleet.plan.url}", "green")
        desk.say("Next: python -m fleet status · scale N · down")
        return
    fleet = converge(desk, fleet, fleet.plan.workers)
    desk.say(f"Mended: {len(fleet.workers)} workers on {fleet.plan.url}", "green")


def down(desk: Desk, options: argparse.Namespace) -> None:
    """Stop everything; nothing to stop is fine too."""
    fleet = running(desk)
    if fleet is None:
        desk.forget()
        desk.say("Nothing is running")
        return
    stop_all(desk, fleet, now=options.now)
    desk.say(f"Down: nothing is left running. Logs stay in {desk.folders.logs}", "green")


def stop_all(desk: Desk, fleet: Fleet, now: bool) -> None:
    """First nginx, which finishes what it has, then the workers. ``now``: answers under way are cut."""
    grace = NOW_S if now else grace_s(fleet)
    if fleet.nginx is not None:
        desk.stop({"nginx": fleet.nginx}, signal.SIGTERM if now else signal.SIGQUIT, grace)
    workers = {name: process for name, process in fleet.processes.items() if name != "nginx"}
    desk.stop(workers, signal.SIGTERM, grace)  # gunicorn's SIGQUIT is not heard by its uvicorn workers
    desk.forget()


def scale(desk: Desk, options: argparse.Namespace) -> None:
    """Another number of workers, without losing a request."""
    fleet = running(desk)
    if fleet is None:
        raise NotUp("no fleet is up", f"python -m fleet up --workers {options.workers}")
    if not 1 <= options.workers <= plan.MOST_WORKERS:
        raise BadSetting(f"{options.workers} workers is not between 1 and {plan.MOST_WORKERS}", "python -m fleet scale 5")
    before = len(fleet.workers)
    cores = plan.cores()
    if options.workers * fleet.plan.threads > max(cores, options.workers):
        fair = plan.threads_per_worker(options.workers, cores)
        desk.say(
            f"{options.workers} workers × {fleet.plan.threads} threads are more than {cores} cores; "
            f"better: python -m fleet down, then KRONOS_THREADS={fair} python -m fleet up --workers {options.workers}",
            "yellow",
        )
    fleet = converge(desk, fleet, options.workers)
    desk.say(f"Scaled from {before} to {len(fleet.workers)} workers", "green")


def status(desk: Desk, options: argparse.Namespace) -> None:
    """What runs, and how it does."""
    fleet = running(desk)
    if fleet is None:
        raise NotUp("no fleet is up", "python -m fleet up")
    if options.json:
        sys.stdout.write(json.dumps(watch.as_document(fleet, watch.measure(desk, fleet)), indent=1) + "\n")
    elif options.watch:
        watch_status(desk, fleet)
    else:
        shown = watch.measure(desk, fleet)
        desk.console.print(watch.table(fleet, shown))
        if advice := watch.advice(shown):
            desk.say(advice, "red")


def watch_status(desk: Desk, fleet: Fleet) -> None:
    """The live table, until Ctrl-C or until the fleet is gone."""
    before = {look.name: look for look in watch.look_at_all(desk.host, fleet)}
    with Live(console=desk.console, auto_refresh=False) as live:
        while (found := running(desk)) is not None:
            time.sleep(watch.RATE_WINDOW_S)
            now = watch.look_at_all(desk.host, found)
            live.update(watch.table(found, watch.rows(desk.host, found, before, now)), refresh=True)
            before = {look.name: look for look in now}


def logs(desk: Desk, options: argparse.Namespace) -> None:
    """The last lines of one log or of all, and what follows."""
    known = {path.stem: path for path in sorted(desk.folders.logs.glob("*.log"))}
    name = f"worker-{options.name}" if options.name and options.name.isdigit() else options.name
    if name and name not in known:
        raise BadSetting(f"there is no log of {name}", f"python -m fleet logs {next(iter(known), '')}")
    if not known:
        raise NotUp("there are no logs yet", "python -m fleet up")
    chosen = {name: known[name]} if name else known
    width = max(map(len, chosen))
    last = ((each, line) for each, path in chosen.items() for line in journal.tail(path, options.lines))
    for each, line in chain(last, journal.follow(chosen) if options.follow else ()):
        print(f"{each:<{width}} | {line}", flush=True)


def predict(desk: Desk, options: argparse.Namespace) -> None:
    """Candles in, forecast out: a table, a picture, a file."""
    from fleet import forecast  # not above: it needs pandas, half a second

    fleet = running(desk)
    if options.url is None and fleet is None:
        raise NotUp("no fleet is up", "python -m fleet up, or give --url")
    known = fleet is not None and options.url is None
    url = fleet.plan.url if fleet is not None and known else options.url
    timeout_s = fleet.plan.inference_timeout_s if fleet is not None and known else plan.CLIENT_TIMEOUT_S
    forecast.predict(desk, options, url, timeout_s)
