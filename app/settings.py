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

from app.admission import Limits
from app.jobs.targets import Targets

PREFIX: Final = "KRONOS_"
CONFIG_VARIABLE: Final = "KRONOS_CONFIG"
DEFAULT_CONFIG: Final = "config.yaml"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
LONGEST_TIMEOUT: Final = 600.0
# In an address, or in what was meant to be one. They are not for logs.
CREDENTIALS: Final = re.compile(r"(?P<slashes>//).*@|[^'\"/\s]*:(?!//)[^'\"]*@|(?<=password=)[^&'\"\s]*")
SECRET: Final = ("api_keys", "webhook_secrets")  # never shown, not even when they are malformed


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
    max_queue_wait: float = setting(30.0, "KRONOS_MAX_QUEUE_WAIT", "limits.queue_wait", "s",
        "Longest that a request may have to wait, by the measured rate, for what is ahead of it; more is answered 429.",
        gt=0, le=LONGEST_TIMEOUT)  # fmt: skip
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

    jobs_url: str | None = setting(None, "KRONOS_JOBS_URL", "jobs.url", "",
        "Where jobs are kept: sqlite:FILE for the workers of one host, redis://HOST:PORT (rediss://, unix://) for a fleet. "
        "Without it, /v1/jobs answers 501.", pattern=r"^(sqlite:.+|(rediss?|unix)://\S+)$")  # fmt: skip
    jobs_ttl: float = setting(86_400.0, "KRONOS_JOBS_TTL", "jobs.ttl", "s",
        "Default and longest `ttl` of a job: to its end, and then again for its result.", ge=1, le=31 * 86_400)  # fmt: skip
    jobs_timeout: float = setting(600.0, "KRONOS_JOBS_TIMEOUT", "jobs.timeout", "s",
        "Default and longest `timeout` of one attempt at a job.", gt=0, le=86_400)  # fmt: skip
    jobs_attempts: int = setting(5, "KRONOS_JOBS_ATTEMPTS", "jobs.attempts", "attempts",
        "Attempts at a job whose workers die or fall silent; then it has failed.", ge=1, le=100)  # fmt: skip
    jobs_visibility: float = setting(15.0, "KRONOS_JOBS_VISIBILITY", "jobs.visibility", "s",
        "A worker silent for so long loses its jobs to others.", ge=1, le=3600)  # fmt: skip
    jobs_max_waiting: int = setting(10_000, "KRONOS_JOBS_MAX_WAITING", "jobs.max_waiting", "jobs",
        "Jobs that may be queued; more are answered 429.", ge=1, le=10**7)  # fmt: skip
    jobs_max_bytes: int = setting(2**30, "KRONOS_JOBS_MAX_BYTES", "jobs.max_bytes", "bytes",
        "Requests and results that may be kept; no more jobs are taken in beyond.", ge=2**20, le=10**13)  # fmt: skip

    prediction_log: str | None = setting(None, "KRONOS_PREDICTION_LOG", "prediction_log.path", "",
        "Where every forecast is recorded: a folder, or s3://BUCKET/PREFIX with the usual AWS_* variables.",
        pattern=r"^(s3://[^/\s]+(/\S*)?|[^:]+)$")  # fmt: skip
    prediction_log_inputs: bool = setting(False, "KRONOS_PREDICTION_LOG_INPUTS", "prediction_log.inputs", "",
        "Record the candles that were sent, too.")  # fmt: skip
    prediction_log_age: float = setting(10.0, "KRONOS_PREDICTION_LOG_AGE", "prediction_log.age", "s",
        "Longest time a record waits in memory before it is written: what a killed worker loses.",
        gt=0, le=3600)  # fmt: skip
    prediction_log_batch: int = setting(2000, "KRONOS_PREDICTION_LOG_BATCH", "prediction_log.batch", "records",
        "Records in one file; a file is written before its age when it has so many.", ge=1, le=50_000)  # fmt: skip
    prediction_log_buffer: int = setting(64 * 2**20, "KRONOS_PREDICTION_LOG_BUFFER", "prediction_log.buffer", "bytes",
        "Memory for records that are not written yet; beyond, the newest are dropped and counted.",
        ge=2**20, le=10**12)  # fmt: skip

    kafka_servers: str | None = setting(None, "KRONOS_KAFKA_SERVERS", "kafka.servers", "",
        "Publish every forecast as an event through these brokers: HOST:PORT,HOST:PORT.",
        pattern=r"^[^\s,:/]+:\d{1,5}(,[^\s,:/]+:\d{1,5})*$")  # fmt: skip
    kafka_topic: str = setting("kronos.forecasts", "KRONOS_KAFKA_TOPIC", "kafka.topic", "",
        "The topic of the events.", pattern=r"^[A-Za-z0-9._-]{1,249}$")  # fmt: skip
    kafka_security: str | None = setting(None, "KRONOS_KAFKA_SECURITY", "kafka.security", "",
        "A JSON file with librdkafka's options `security.…`, `sasl.…` and `ssl.…`.", min_length=1)  # fmt: skip
    kafka_bytes: int = setting(16 * 2**20, "KRONOS_KAFKA_BYTES", "kafka.bytes", "bytes",
        "Memory for events that no broker has yet; when it is full, new ones are dropped and counted.",
        ge=2**16, le=2**31)  # fmt: skip
    kafka_timeout: float = setting(300.0, "KRONOS_KAFKA_TIMEOUT", "kafka.timeout", "s",
        "How long an event may wait for its delivery before it is dropped and counted.", ge=1, le=86_400)  # fmt: skip

    postgres_url: str | None = setting(None, "KRONOS_POSTGRES_URL", "postgres.url", "",
        "Write every forecast into the table kronos.forecasts of this database: postgresql://USER:PASSWORD@HOST:PORT/NAME.",
        pattern=r"^postgres(ql)?://\S+$")  # fmt: skip
    postgres_bytes: int = setting(16 * 2**20, "KRONOS_POSTGRES_BYTES", "postgres.bytes", "bytes",
        "Memory for forecasts that are not in the table yet; when it is full, new ones are dropped and counted.",
        ge=2**16, le=2**31)  # fmt: skip

    webhook_targets: str | None = setting(None, "KRONOS_WEBHOOK_TARGETS", "webhooks.targets", "",
        "Whom a job's end may be told: HOST or HOST:PORT by https, http://HOST:PORT in the clear, NETWORK/BITS that these "
        "names may lead into (public addresses always may). Without it, webhooks are refused.", min_length=1)  # fmt: skip
    webhook_secrets: str | None = setting(None, "KRONOS_WEBHOOK_SECRETS", "webhooks.secrets", "",
        "What webhooks are signed with; two while it is changed. At least 24 characters each.",
        pattern=r"^[^\s,]{24,}([\s,]+[^\s,]{24,})*$")  # fmt: skip
    webhook_timeout: float = setting(10.0, "KRONOS_WEBHOOK_TIMEOUT", "webhooks.timeout", "s",
        "Time of one call, from the look-up of the name to the status.", gt=0, le=60)  # fmt: skip
    webhook_tries: int = setting(10, "KRONOS_WEBHOOK_TRIES", "webhooks.tries", "calls",
        "Calls until a webhook is given up; 10 take about half an hour.", ge=1, le=20)  # fmt: skip

    api_keys: str | None = setting(None, "KRONOS_API_KEYS", "server.api_keys", "",
        "SHA-256 of each key that /v1 may be asked with (`python -m app.api.keys` makes one); without it, anybody may ask.",
        pattern=r"^[0-9a-fA-F]{64}([\s,]+[0-9a-fA-F]{64})*$")  # fmt: skip
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
    io_workers: int = setting(8, "KRONOS_IO_WORKERS", "performance.thread_pools.io_workers", "threads",
        "Threads of the pool `io`: webhooks, log shipping, name lookups.", ge=1, le=1024)  # fmt: skip
    cpu_workers: int = setting(1, "KRONOS_CPU_WORKERS", "performance.thread_pools.cpu_workers", "threads",
        "Threads of the pool `cpu`: requests and answers too large for the event loop.", ge=1, le=1024)  # fmt: skip
    inference_workers: int = setting(1, "KRONOS_INFERENCE_WORKERS", "performance.thread_pools.inference_workers",
        "threads", "Threads of the pool `inference`: loading and prewarming. One thread owns the model, in no pool.",
        ge=1, le=1024)  # fmt: skip
    embedding_workers: int = setting(1, "KRONOS_EMBEDDING_WORKERS", "performance.thread_pools.embedding_workers",
        "threads", "Threads of the pool `embedding`: as `cpu`, for embeddings.", ge=1, le=1024)  # fmt: skip
    db_workers: int = setting(1, "KRONOS_DB_WORKERS", "performance.thread_pools.db_workers", "threads",
        "Threads of the pool `db`: job and log stores.", ge=1, le=1024)  # fmt: skip
    pool_queue: int = setting(64, "KRONOS_POOL_QUEUE", "performance.thread_pools.queue", "tasks",
        "Tasks that may wait before each pool; more are refused.", ge=0, le=100_000)  # fmt: skip
    pool_patience: float = setting(5.0, "KRONOS_POOL_PATIENCE", "performance.thread_pools.patience", "s",
        "How long a task may wait for a thread before it is refused.", gt=0, le=LONGEST_TIMEOUT)  # fmt: skip
    pool_verbose: bool = setting(False, "KRONOS_POOL_VERBOSE", "performance.thread_pools.verbose", "",
        "Log each task of a pool when it is submitted and when it ends, with its seconds and outcome.")  # fmt: skip

    @model_validator(mode="after")
    def _timeouts_form_a_ladder(self) -> Self:
        if self.inference_timeout > self.request_timeout:
            raise ValueError(
                f"KRONOS_INFERENCE_TIMEOUT ({self.inference_timeout:g} s) must not exceed "
                f"KRONOS_REQUEST_TIMEOUT ({self.request_timeout:g} s), which contains it"
            )
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed_and_bounded(self) -> Self:
        if self.webhook_targets:
            try:
                Targets(self.webhook_targets)
            except ValueError as error:
                raise ValueError(f"KRONOS_WEBHOOK_TARGETS: {error}") from error
            if not self.webhook_secrets:
                raise ValueError("KRONOS_WEBHOOK_TARGETS needs KRONOS_WEBHOOK_SECRETS, which webhooks are signed with")
        return self

    @property
    def limits(self) -> Limits:
        """What a worker takes on before it refuses."""
        return Limits(self.max_concurrency, self.max_queue_work, self.bulk_share, self.max_queue_wait)

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


def without_credentials(text: str) -> str:
    """``text`` as it may be shown: addresses in it without user and password."""
    return CREDENTIALS.sub(lambda found: (found["slashes"] or "") + ("…@" if found[0].endswith("@") else "…"), text)


def _explain(entry: dict[str, Any], origin: Mapping[str, str]) -> str:
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ")
    name = str(entry["loc"][0])
    shown = "…" if name in SECRET else without_credentials(repr(entry["input"]))
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
