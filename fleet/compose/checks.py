"""What can be known to be wrong before anything is started: one sentence each, and what to do.

Knows: ports, memory, checkpoints, timeouts, dials that reach nothing. Does not know: how to change anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import psutil

from fleet import settings
from fleet.compose import commands, project
from fleet.compose.containers import Container
from fleet.compose.engine import Engine
from fleet.compose.project import Project
from fleet.errors import BadSetting, MissingModel, NoMemory, PortInUse

GRACEFUL_S = 2.0
"""A worker told to stop takes at most so much more than its longest answer."""
SAME_MACHINE = 0.05
"""Engine and fleet command are on one machine when their memory differs by less than this part."""
AGAIN = "set MODELS, KRONOS_MODEL and KRONOS_TOKENIZER in .env"


def dials(engine: Engine, wanted: Project) -> None:
    """Raises BadSetting for a worker's setting, in .env or the shell, that would reach no worker."""
    env_file = engine.desk.folders.root / ".env"
    set_in = dict.fromkeys(engine.desk.env, "the shell")
    set_in |= dict.fromkeys(project.names(env_file.read_text()), ".env") if env_file.is_file() else {}
    for name, where in set_in.items():
        if settings.is_setting(name) and name not in wanted.accepts:
            close = difflib.get_close_matches(name, wanted.accepts, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            what = f"{name} in {where} reaches no worker{hint}"
            raise BadSetting(what, "correct it or leave it out; .env.example has the dials")


def ladder(wanted: Project, effective: Mapping[str, object]) -> None:
    """Raises BadSetting unless the longest answer < nginx's patience < what a stopping container is granted."""
    inference, drain = float(str(effective["inference_timeout"])), float(str(effective["drain_delay"]))
    read, grace = wanted.read_timeout_s, wanted.grace_s
    if read <= inference + GRACEFUL_S:
        raise BadSetting(
            f"PROXY_READ_TIMEOUT ({read:g} s) is not above KRONOS_INFERENCE_TIMEOUT ({inference:g} s) and its "
            f"{GRACEFUL_S:g} s: nginx would give up before the worker says why",
            f"set PROXY_READ_TIMEOUT={inference + 2 * GRACEFUL_S:g}s in .env",
        )
    if grace <= max(read, drain + inference + GRACEFUL_S):
        least = max(read, drain + inference + GRACEFUL_S)
        raise BadSetting(
            f"STOP_GRACE ({grace:g} s) is not above {least:g} s, the longest answer of a worker that stops: answers would be cut",
            f"set STOP_GRACE={least + 10:g}s in .env",
        )


def checkpoints(wanted: Project, effective: Mapping[str, object], engine: Engine) -> None:
    """Raises MissingModel when a folder that workers are given is not there or holds no checkpoint."""
    for source, target in wanted.mounts(commands.WORKER):
        if not source.is_dir():
            raise MissingModel(f"there is no folder {source}, which workers are to see as {target}", AGAIN)
    for kind in ("model", "tokenizer"):
        path = str(effective[kind])
        folder = wanted.on_host(commands.WORKER, path)
        if folder is not None and not folder.is_dir():
            raise MissingModel(f"the {kind} {path} would be {folder}, and there is no such folder", AGAIN)
        if folder is not None:
            settings.check_checkpoint(kind, f"{path} ({folder})", folder, AGAIN)
        elif path.startswith("/"):
            seen = ", ".join(str(target) for _, target in wanted.mounts(commands.WORKER))
            raise MissingModel(f"the {kind} {path} is not in a folder that containers see ({seen})", AGAIN)
        else:
            settings.check_checkpoint(kind, path, engine.desk.folders.root / path, AGAIN)


def memory(engine: Engine, wanted: Project, workers: int, more: int) -> None:
    """Raises NoMemory when ``workers`` of them may take more than there is; says so when ``more`` may more than is free."""
    total = int(engine.ask(commands.memory()))
    need = workers * wanted.memory
    if need > total:
        raise NoMemory(
            f"{workers} workers × {_gib(wanted.memory)} are {_gib(need)}, and this engine has {_gib(total)}",
            f"{engine.command} up --workers {max(1, total // max(1, wanted.memory))}, or set WORKER_MEMORY in .env",
        )
    here = psutil.virtual_memory()
    if abs(here.total - total) < SAME_MACHINE * total and more * wanted.memory > here.available:
        engine.desk.say(
            f"{more} more workers may take {_gib(more * wanted.memory)}, and {_gib(here.available)} are free now", "yellow"
        )


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB"


def port(engine: Engine, wanted: Project, running: Sequence[Container]) -> None:
    """Raises PortInUse when another program, or another container, has the fleet's door."""
    door = next((each for each in running if each.service == commands.NGINX and each.published), None)
    if door is not None and door.published and door.published[1] == wanted.port:
        return
    address = wanted.address or "0.0.0.0"
    try:
        holder = engine.desk.host.port_holder(address, wanted.port)
    except OSError as error:
        raise PortInUse(f"cannot listen on {address}:{wanted.port}: {error.strerror}", "set PUBLISH_ADDRESS in .env") from error
    if holder is not None:
        container = engine.ask(commands.holder(wanted.port)).strip()
        who = f"the container {container}" if container else holder
        raise PortInUse(f"port {wanted.port} is in use by {who}", f"set PUBLISH_PORT={wanted.port + 1} in .env")
