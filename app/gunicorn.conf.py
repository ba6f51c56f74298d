"""How gunicorn runs a worker: ``gunicorn -c app/gunicorn.conf.py app.main:app``.

Knows: supervision and the server's options, all from the settings. Does not know: the application.
gunicorn reads the lower-case names; it replaces a process that is hung, killed or gone.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

from uvicorn_worker import UvicornWorker

from app.logs import dict_config
from app.settings import SettingsError, load

try:
    settings = load()
except SettingsError as error:
    sys.exit(f"cannot start, these settings are wrong:\n{error}")

# Native libraries read their number of threads once, when they are first imported in the worker.
settings.set_thread_environment()

HEARTBEAT_S = 10  # a process silent for so long is killed and replaced (default 30 s)


class Worker(UvicornWorker):
    """A uvicorn server that also leaves when its gunicorn is gone."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012  # the name and kind that UvicornWorker reads
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "lifespan": "on",
        "access_log": False,  # the application writes its own line for each request
        "server_header": False,
        # Requests in flight may take the whole inference timeout; then one second for the goodbye.
        "timeout_graceful_shutdown": math.ceil(settings.inference_timeout) + 1,
    }

    async def callback_notify(self) -> None:
        if os.getppid() != self.ppid:
            signal.raise_signal(signal.SIGTERM)
        await super().callback_notify()


def on_starting(server: Any) -> None:
    """Import what a worker needs once, before the fork: its replacement starts at once and shares the memory."""
    import app.main
    import app.model.runner  # noqa: F401


bind = settings.bind
workers = settings.workers
worker_class = Worker
timeout = HEARTBEAT_S
# More than the server's own, by the time in which it still serves, not ready, and by what it may take afterwards to write
# down what it holds of predictions (3 s) and to let its pools finish (2 s).
graceful_timeout = math.ceil(settings.inference_timeout + settings.drain_delay) + 2 + 5
keepalive = settings.keep_alive  # longer than the proxy's (default 2 s), or it would meet closed connections
control_socket_disable = True  # it would be made in the home folder, which may be read-only
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a heartbeat must not wait for a disk
logconfig_dict = dict_config(settings.log_level)
proc_name = settings.worker_name
