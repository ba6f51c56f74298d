"""The settings: where they come from, what is refused, and by which name."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from app.admission import Limits
from app.pools import NAMES
from app.settings import THREAD_VARIABLES, Settings, SettingsError, load, names, table

NOWHERE = Path("no-such-folder/config.yaml")


def from_yaml(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load(environment or {}, path)


def test_environment_comes_before_config_yaml_before_defaults(tmp_path: Path) -> None:
    """The nearest source wins, setting by setting."""
    text = "limits: {candles: 100, samples: 5}\n"
    settings = from_yaml(tmp_path, text, {"KRONOS_MAX_CANDLES": "50"})
    assert (settings.max_candles, settings.max_samples) == (50, 5)
    assert settings.max_horizon == Settings().max_horizon


def test_the_names_of_other_kronos_services_work(tmp_path: Path) -> None:
    """Who moves here keeps their environment and their ``performance:`` section."""
    text = """
performance:
  workers: 2
  keep_alive_timeout: 30
  thread_pools: {io_workers: 50, cpu_workers: 30, inference_workers: 20, embedding_workers: 15, db_workers: 25}
"""
    environment = {
        "KRONOS_INFERENCE_TIMEOUT": "20", "KRONOS_REQUEST_TIMEOUT": "45", "KRONOS_STARTUP_TIMEOUT": "90",
        "PREDICT_MAX_CONCURRENCY": "8", "ENABLE_PREWARM": "0",
    }  # fmt: skip
    settings = from_yaml(tmp_path, text, environment)
    assert (settings.inference_timeout, settings.request_timeout, settings.startup_timeout) == (20, 45, 90)
    assert (settings.max_concurrency, settings.prewarm) == (8, False)
    assert (settings.workers, settings.keep_alive) == (2, 30)
    sizes = [getattr(settings, f"{name}_workers") for name in NAMES]
    assert dict(zip(NAMES, sizes, strict=True)) == {"io": 50, "cpu": 30, "inference": 20, "embedding": 15, "db": 25}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"KRONOS_THREAD": "2"}, ["KRONOS_THREAD: no such setting", "did you mean KRONOS_THREADS?"]),
        ({"KRONOS_THREADS": "two"}, ["KRONOS_THREADS (environment) = 'two'", "integer"]),
        ({"KRONOS_THREADS": "0"}, ["KRONOS_THREADS (environment) = '0'", "greater than or equal to 1"]),
        ({"KRONOS_BULK_SHARE": "nan"}, ["KRONOS_BULK_SHARE"]),
        ({"KRONOS_DEVICE": "tpu"}, ["KRONOS_DEVICE", "'cpu'"]),
        ({"KRONOS_MODEL_SHA256": "abc"}, ["KRONOS_MODEL_SHA256"]),
        ({"ENABLE_PREWARM": "perhaps"}, ["ENABLE_PREWARM"]),
        ({"KRONOS_BIND": "nowhere"}, ["KRONOS_BIND"]),
        ({"KRONOS_WORKER_NAME": "a b"}, ["KRONOS_WORKER_NAME"]),
        ({"KRONOS_INFERENCE_TIMEOUT": "90"}, ["KRONOS_INFERENCE_TIMEOUT (90 s)", "KRONOS_REQUEST_TIMEOUT (60 s)"]),
        ({"KRONOS_CONFIG": str(NOWHERE)}, [str(NOWHERE), "no such file", "KRONOS_CONFIG"]),
        ({"KRONOS_REDIS_URL": "rdis://me:secret@host"}, ["KRONOS_REDIS_URL (environment) = 'rdis://…@host'", "rediss?"]),
        ({"KRONOS_A": "1", "KRONOS_THREADS": "x"}, ["KRONOS_A", "KRONOS_THREADS"]),
    ],
)
def test_a_bad_environment_is_refused_by_name(environment: dict[str, str], words: list[str]) -> None:
    """The message names every variable that is wrong, with what was given and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        load(environment, None if "KRONOS_CONFIG" in environment else Path("config.yaml"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits: {candels: 5}", ["limits.candels: no such setting", "did you mean limits.candles?"]),
        ("limits: {candles: 0}", ["limits.candles (config.yaml) = 0"]),
        ("limits: {candles: 4096}", ["limits.candles", "2048"]),
        ("speed: 5", ["speed: no such setting"]),
        ("- a", ["must hold sections"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_bad_config_yaml_is_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message names the place in the file."""
    with pytest.raises(SettingsError) as caught:
        from_yaml(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_an_empty_file_and_no_file_mean_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be configured."""
    assert from_yaml(tmp_path, "limits:\n") == Settings()
    (tmp_path / "config.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    assert load({}) == Settings()


def test_the_shipped_config_yaml_shows_the_defaults() -> None:
    """The file in the repository documents and does not change anything."""
    assert load({}, Path("config.yaml")) == Settings()
    assert yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))["performance"]["thread_pools"]


def test_settings_cannot_be_changed() -> None:
    """What was read at the start holds for the life of the process."""
    with pytest.raises(pydantic.ValidationError):
        Settings().threads = 2


def test_every_setting_is_named_described_and_listed() -> None:
    """The table has a row for each setting with its two names, and no two settings share one."""
    rows = table().splitlines()[2:]
    fields = Settings.model_fields
    assert len(rows) == len(fields)
    for row, field in zip(rows, fields.values(), strict=True):
        env, place, unit = names(field)
        assert row.startswith(f"| `{env}` | `{place}` |")
        assert f"| {unit} |" in row
        assert field.description and row.endswith(f"| {field.description} |")
    assert len({names(field)[0] for field in fields.values()}) == len(fields)
    assert len({names(field)[1] for field in fields.values()}) == len(fields)


def test_numbers_have_bounds() -> None:
    """No number is accepted without limit."""
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float):
            assert any(hasattr(item, "le") for item in field.metadata), name


def test_the_defaults_of_admission_have_one_value() -> None:
    """The engine's own defaults are those of the settings."""
    settings = Settings()
    assert Limits() == settings.limits


def test_the_thread_environment_follows_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every native library is told the same number of threads."""
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "64")
    Settings(threads=3).set_thread_environment()
    assert {os.environ[variable] for variable in THREAD_VARIABLES} == {"3"}


def gunicorn_conf() -> dict[str, Any]:
    return runpy.run_path("app/gunicorn.conf.py")


def test_gunicorn_waits_longer_than_the_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder: a request's deadline, then the server's patience, then gunicorn's."""
    monkeypatch.setenv("KRONOS_INFERENCE_TIMEOUT", "7.5")
    monkeypatch.setenv("KRONOS_DRAIN_DELAY", "3")
    monkeypatch.setenv("KRONOS_BIND", "127.0.0.1:8101")
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")
    conf = gunicorn_conf()
    server = conf["worker_class"].CONFIG_KWARGS["timeout_graceful_shutdown"]
    assert 7.5 < server < conf["graceful_timeout"] - 3
    assert conf["bind"] == "127.0.0.1:8101"
    assert conf["timeout"] < 30
    assert conf["control_socket_disable"]


def test_gunicorn_stops_with_one_message_for_a_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads the name of the setting, not a traceback."""
    monkeypatch.setenv("KRONOS_MODLE", "x")
    with pytest.raises(SystemExit, match="KRONOS_MODLE"):
        gunicorn_conf()
