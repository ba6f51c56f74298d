"""The pure layer: argv, environments and configuration text of every program the fleet starts.

Knows: how gunicorn and nginx want to be told things. Does not know: whether anybody runs them; nothing here
reads a file, a clock or the environment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from fleet.settings import is_setting
from fleet.state import Folders, Plan

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
WORKER_HOST = "127.0.0.1"
OLDEST_NGINX = (1, 22)
KEEPALIVE_MIN_TIMEOUT_SINCE = (1, 27, 4)
"""Before, a reload closes idle client connections at once, and a request just on its way is lost."""
KEEPALIVE_MIN_TIMEOUT_S = 5
READ_MARGIN_S = 4
"""nginx waits this much longer than a worker works, so that the worker's own precise 504 arrives first."""


def worker_argv(plan: Plan, folders: Folders) -> list[str]:
    """A gunicorn arbiter with its one worker. The same for all workers: what differs is in the environment."""
    conf = str(folders.root / plan.gunicorn_conf)
    return [sys.executable, "-m", "gunicorn", "-c", conf, "--chdir", str(folders.root), plan.app]


def worker_env(plan: Plan, name: str, port: int, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` without its own settings, then the plan's settings, then what makes this worker this worker."""
    inherited = {key: value for key, value in base.items() if not is_setting(key)}
    return {
        **inherited,
        **plan.settings,
        **dict.fromkeys(THREAD_VARIABLES, str(plan.threads)),
        "PYTHONUNBUFFERED": "1",
        "KRONOS_BIND": f"{WORKER_HOST}:{port}",
        "KRONOS_WORKER_NAME": name,
    }


def nginx_argv(plan: Plan, folders: Folders, user: str | None, *extra: str) -> list[str]:
    """nginx in the foreground of its own session. ``user`` is "name group" and given only when root starts it."""
    globals_ = ["daemon off;", f"error_log {folders.log('nginx')} warn;", *([f"user {user};"] if user else [])]
    prefix = ["-p", f"{folders.nginx}/", "-c", str(folders.nginx / "nginx.conf"), "-e", str(folders.log("nginx"))]
    return [plan.nginx, *prefix, "-g", " ".join(globals_), *extra]


def nginx_version(text: str) -> tuple[int, ...]:
    """``nginx version: nginx/1.22.1 (…)`` → (1, 22, 1); () when it says nothing of the kind."""
    found = re.search(r"nginx/(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found[1].split("."))) if found else ()


def door_conf(plan: Plan, folders: Folders) -> str:
    """Where nginx listens and logs: the include of the server block."""
    return f"listen {plan.host}:{plan.port};\naccess_log {folders.access_log} fleet;\n"


def upstream_conf(plan: Plan, ports: Sequence[int]) -> str:
    """The local twin of ``nginx/containers/upstream.conf``, which explains each directive: a fixed list."""
    read_timeout = f"{plan.inference_timeout_s + READ_MARGIN_S:g}s"
    lines = [
        "# Rendered by `python -m fleet`; nginx/containers/upstream.conf explains each directive.",
        f"proxy_read_timeout {read_timeout};",
        f"proxy_next_upstream_timeout {read_timeout};",
    ]
    if plan.nginx_version >= KEEPALIVE_MIN_TIMEOUT_SINCE:
        lines.append(f"keepalive_min_timeout {KEEPALIVE_MIN_TIMEOUT_S}s;")
    for name, limits in (("kronos", "max_fails=1 fail_timeout=2s"), ("kronos_again", "max_fails=0")):
        servers = [f"    server {WORKER_HOST}:{port} {limits};" for port in ports]
        lines += [f"upstream {name} {{", f"    zone {name} 256k;", "    least_conn;", *servers]
        if name == "kronos":
            lines += ["    keepalive 64;", "    keepalive_timeout 30s;", "    keepalive_requests 100000;"]
        lines.append("}")
    return "\n".join(lines) + "\n"
