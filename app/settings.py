"""Every setting of the worker: environment name, place in config.yaml, type, unit, bounds, default, meaning.

Knows: the environment first, then config.yaml, then the defaults; refuses what it does not know, by name.
Does not know: what the values are used for. ``python -m app.settings`` prints the table of the README.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

PREFIX: Final = "KRONOS_"
CONFIG_VARIABLE: Final = "KRONOS_CONFIG"
DEFAULT_CONFIG: Final = "config.yaml"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
LONGEST_TIMEOUT: Final = 600.0
NO_EFFECT: Final = {
    "cpu_workers": "parsing and validating run on the event loop: they take less time than a hand-over",
    "inference_workers": "one thread owns the model; concurrent requests share its steps",
    "embedding_workers": "embeddings are computed by the thread that owns the model",
    "db_workers": "this worker has no database",
}


CREDENTIALS: Final = re.compile(r"//[^@/]*@")  # in an address; they are not for logs


class SettingsError(ValueError):
    """A setting that is unknown, malformed or out of bounds; the message names it and says what is allowed."""


def setting(default: Any, env: str, yaml: str, unit: str, help: str, **bounds: Any) -> Any:
    """A field of ``Settings``. ``bounds`` are pydantic's: ge, le, gt, pattern."""
    extra: JsonDict = {"env": env, "yaml": yaml, "unit": unit}
    return Field(default, description=help, json_schema_extra=extra, validate_default=True, **bounds)


class Settings(BaseModel):
    """All settings, frozen. Build it with ``load``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = setting("models/demo/model", "KRONOS_MODEL", "model.path", "",
        "Model: a folder, or a hub id `owner/name@revision`.", min_length=1)  # fmt: skip
    tokenizer: str = setting("models/demo/tokenizer", "KRONOS_TOKENIZER", "model.tokenizer", "",
        "Tokenizer: a folder, or a hub id `owner/name@revision`.", min_length=1)  # fmt: skip
    model_sha256: str | None = setting(None, "KRONOS_MODEL_SHA256", "model.sha256", "",
        "Refuse a model.safetensors with another sha256.", pattern="^[0-9a-fA-F]{64}$")  # fmt: skip
    max_context: int | None = setting(None, "KRONOS_MAX_CONTEXT", "model.max_context", "candles",
        "Longest window of the model; default: what the checkpoint says.", ge=2, le=65536)  # fmt: skip
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "KRONOS_DEVICE", "model.device", "",
        "Where the model runs; auto takes CUDA when there is one.")  # fmt: skip
    dtype: Literal["float32", "bfloat16"] = setting("float32", "KRONOS_DTYPE", "model.dtype", "",
        "Storage of the model's matrices and cache; float32 is exact to the reference.")  # fmt: skip
    threads: int = setting(1, "KRONOS_THREADS", "model.threads", "threads",
        "Threads of torch and BLAS; the CPU kernel uses one. Keep threads × workers ≤ cores.", ge=1, le=1024)  # fmt: skip
    slots: int = setting(8, "KRONOS_SLOTS", "model.slots", "sample paths",
        "Sample paths that can share one decode step.", ge=1, le=4096)  # fmt: skip
    prewarm: bool = setting(True, "ENABLE_PREWARM", "model.prewarm", "",
        "Make real predictions before the worker says it is ready.")  # fmt: skip

    inference_timeout: float = setting(30.0, "KRONOS_INFERENCE_TIMEOUT", "timeouts.inference", "s",
        "Default and longest `timeout` of a request, from its last byte to its answer.",
        gt=0, le=LONGEST_TIMEOUT)  # fmt: skip
    request_timeout: float = setting(60.0, "KRONOS_REQUEST_TIMEOUT", "timeouts.request", "s",
        "Longest time from a request's first byte to its answer, receiving the body included.",
        gt=0, le=LONGEST_TIMEOUT)  # fmt: skip
    body_timeout: float = setting(10.0, "KRONOS_BODY_TIMEOUT", "timeouts.body", "s",
        "Longest time to receive a body.", gt=0, le=LONGEST_TIMEOUT)  # fmt: skip
    startup_timeout: float = setting(120.0, "KRONOS_STARTUP_TIMEOUT", "timeouts.startup", "s",
        "A worker that is not ready by then exits.", gt=0, le=3600)  # fmt: skip
    watchdog: float = setting(20.0, "KRONOS_WATCHDOG", "timeouts.watchdog", "s",
        "A worker whose engine has work and makes no step for so long exits.", gt=0, le=3600)  # fmt: skip
    drain_delay: float = setting(0.0, "KRONOS_DRAIN_DELAY", "timeouts.drain_delay", "s",
        "Time to serve on, not ready, after SIGTERM, for balancers that watch /readyz.", ge=0, le=300)  # fmt: skip

    max_concurrency: int = setting(256, "PREDICT_MAX_CONCURRENCY", "limits.concurrency", "requests",
        "Requests admitted at once, waiting ones included; more are answered 429.", ge=1, le=100_000)  # fmt: skip
    max_queue_work: int = setting(20_000, "KRONOS_MAX_QUEUE_WORK", "limits.queue_work", "path × steps",
        "Work that may wait at once; more is answered 429.", ge=1, le=10**12)  # fmt: skip
    bulk_share: float = setting(0.5, "KRONOS_BULK_SHARE", "limits.bulk_share", "",
        "Part of the queue that bulk requests may fill.", ge=0, le=1)  # fmt: skip
    max_body: int = setting(8 * 2**20, "KRONOS_MAX_BODY", "limits.body", "bytes",
        "Longest body; more is answered 413.", ge=1024, le=2**30)  # fmt: skip
    max_items: int = setting(64, "KRONOS_MAX_ITEMS", "limits.items", "series",
        "Series in one batch.", ge=1, le=4096)  # fmt: skip
    max_candles: int = setting(2048, "KRONOS_MAX_CANDLES", "limits.candles", "candles",
        "Candles in one series.", ge=1, le=2048)  # fmt: skip
    max_horizon: int = setting(512, "KRONOS_MAX_HORIZON", "limits.horizon", "candles",
        "Longest forecast; the model's context bounds it too.", ge=1, le=65536)  # fmt: skip
    max_samples: int = setting(128, "KRONOS_MAX_SAMPLES", "limits.samples", "sample paths",
        "Sample paths of one series.", ge=1, le=4096)  # fmt: skip
    max_work: int = setting(20_000, "KRONOS_MAX_WORK", "limits.work", "path × steps",
        "Work of one request: series × paths × steps.", ge=1, le=10**12)  # fmt: skip

    cache_ttl: float = setting(10.0, "KRONOS_CACHE_TTL", "cache.ttl", "s",
        "How long an answer may be given again to an identical request; 0 switches the result cache off.",
        ge=0, le=86_400)  # fmt: skip
    cache_bytes: int = setting(32 * 2**20, "KRONOS_CACHE_BYTES", "cache.bytes", "bytes",
        "Memory of the result cache; the least recently used answer goes first.", ge=0, le=10**12)  # fmt: skip
    redis_url: str | None = setting(None, "KRONOS_REDIS_URL", "cache.redis_url", "",
        "Valkey or Redis that the fleet's workers share answers through: redis://HOST:PORT, rediss:// or unix://.",
        pattern=r"^(rediss?|unix)://\S+$")  # fmt: skip

    bind: str = setting("0.0.0.0:8000", "KRONOS_BIND", "server.bind", "",
        "Where the worker listens: `host:port` or `unix:path`.", pattern=r"^(\S+:\d{1,5}|unix:\S+)$")  # fmt: skip
    worker_name: str = setting(socket.gethostname(), "KRONOS_WORKER_NAME", "server.worker_name", "",
        "The answer's `X-Served-By`; default: the host name.", pattern=r"^[A-Za-z0-9._-]{1,64}$")  # fmt: skip
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "KRONOS_LOG_LEVEL", "server.log_level",
        "", "Least severe log line that is written.")  # fmt: skip
    workers: int = setting(1, "KRONOS_WORKERS", "performance.workers", "processes",
        "Processes of this gunicorn; one is right: multiply workers with the fleet instead.", ge=1, le=64)  # fmt: skip
    keep_alive: int = setting(75, "KRONOS_KEEP_ALIVE", "performance.keep_alive_timeout", "s",
        "Idle time after which a connection is closed; must be longer than the proxy's.", ge=1, le=3600)  # fmt: skip
    io_workers: int = setting(4, "KRONOS_IO_WORKERS", "performance.thread_pools.io_workers", "threads",
        "Threads for calls that block (drain, shutdown).", ge=1, le=1024)  # fmt: skip
    cpu_workers: int = setting(1, "KRONOS_CPU_WORKERS", "performance.thread_pools.cpu_workers", "threads",
        "Accepted, without effect: parsing runs on the event loop.", ge=1, le=1024)  # fmt: skip
    inference_workers: int = setting(1, "KRONOS_INFERENCE_WORKERS", "performance.thread_pools.inference_workers",
        "threads", "Accepted, without effect: one thread owns the model.", ge=1, le=1024)  # fmt: skip
    embedding_workers: int = setting(1, "KRONOS_EMBEDDING_WORKERS", "performance.thread_pools.embedding_workers",
        "threads", "Accepted, without effect: one thread owns the model.", ge=1, le=1024)  # fmt: skip
    db_workers: int = setting(1, "KRONOS_DB_WORKERS", "performance.thread_pools.db_workers", "threads",
        "Accepted, without effect: there is no database.", ge=1, le=1024)  # fmt: skip

    @model_validator(mode="after")
    def _timeouts_form_a_ladder(self) -> Self:
        if self.inference_timeout > self.request_timeout:
            raise ValueError(
                f"KRONOS_INFERENCE_TIMEOUT ({self.inference_timeout:g} s) must not exceed "
                f"KRONOS_REQUEST_TIMEOUT ({self.request_timeout:g} s), which contains it"
            )
        return self

    def without_effect(self) -> list[str]:
        """A sentence for each setting that was given and changes nothing in this worker."""
        fields = type(self).model_fields
        given = [name for name in NO_EFFECT if name in self.model_fields_set]
        return [f"{names(fields[name])[1]} has no effect: {NO_EFFECT[name]}" for name in given]

    def set_thread_environment(self) -> None:
        """Tell the native libraries how many threads to use. They read it once: call before importing torch."""
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(self.threads)


def names(field: FieldInfo) -> tuple[str, str, str]:
    """The environment name, the place in config.yaml and the unit of a field."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError("a field of Settings must be made with setting()")
    return str(extra["env"]), str(extra["yaml"]), str(extra["unit"])


def load(environment: Mapping[str, str] | None = None, config: Path | None = None) -> Settings:
    """Read the environment, then config.yaml, then the defaults.

    ``config``: the file; default ``KRONOS_CONFIG``, else ``config.yaml`` in the working directory if there is one.
    Raises SettingsError with one line for each unknown, malformed or out-of-bounds setting.
    """
    environment = os.environ if environment is None else environment
    by_env = {names(field)[0]: name for name, field in Settings.model_fields.items()}
    by_yaml = {names(field)[1]: name for name, field in Settings.model_fields.items()}
    problems = [
        _unknown(variable, [*by_env, CONFIG_VARIABLE])
        for variable in environment
        if variable.startswith(PREFIX) and variable not in by_env and variable != CONFIG_VARIABLE
    ]
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for place, value in _flatten(_read(environment, config)):
        if place not in by_yaml:
            problems.append(_unknown(place, list(by_yaml)))
        elif value is not None:
            values[by_yaml[place]], origin[by_yaml[place]] = value, f"{place} (config.yaml)"
    for variable, name in by_env.items():
        if environment.get(variable):
            values[name], origin[name] = environment[variable], f"{variable} (environment)"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_explain(dict(entry), origin) for entry in error.errors(include_url=False)]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _explain(entry: dict[str, Any], origin: Mapping[str, str]) -> str:
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ")
    name = str(entry["loc"][0])
    shown = CREDENTIALS.sub("//…@", repr(entry["input"]))
    return f"{origin.get(name, name)} = {shown}: {entry['msg']}"


def _read(environment: Mapping[str, str], config: Path | None) -> Any:
    named = config or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    path = named or Path(DEFAULT_CONFIG)
    if not path.is_file():
        if named is None:
            return {}
        raise SettingsError(f"{named}: no such file (named by {CONFIG_VARIABLE})")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not YAML: {error}") from error
    if document is not None and not isinstance(document, dict):
        raise SettingsError(f"{path}: must hold sections such as `limits:`")
    return document or {}


def _flatten(document: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None or prefix:
            yield f"{prefix}{key}", value


def _bounds(field: FieldInfo) -> str:
    if choices := [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(choices)
    found = {key: getattr(item, key) for item in field.metadata for key in ("gt", "ge", "le") if hasattr(item, key)}
    low = f"> {found['gt']:g}" if "gt" in found else f"≥ {found['ge']:g}" if "ge" in found else ""
    high = f"≤ {found['le']:.12g}" if "le" in found else ""
    return ", ".join(part for part in (low, high) if part)


def _type(field: FieldInfo) -> str:
    options: list[Any] = [*get_args(field.annotation), field.annotation]
    kinds = [option.__name__ for option in options if isinstance(option, type) and option is not type(None)]
    return kinds[0] if kinds else "choice"


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| environment | config.yaml | type | unit | bounds | default | what |", "|---|---|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        env, place, unit = names(field)
        default = {"worker_name": "host name"}.get(name, "" if field.default is None else f"{field.default}")
        rows.append(f"| `{env}` | `{place}` | {_type(field)} | {unit} | {_bounds(field)} | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
