"""The pure layer: what the fleet tells gunicorn and nginx, and what it reads from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ERROR_TABLE
from fleet import journal, metrics
from fleet.local import commands, plan
from fleet.settings import effective_settings
from fleet.state import Fleet, Folders, Plan, Process, Worker, from_json
from tests.fleet.live import ROOT, STUB, Live

FOLDERS = Folders(Path("/repo"), Path("/repo/.run"))
PLAN = Plan(
    workers=2, host="127.0.0.1", port=8080, first_worker_port=8101, threads=3, nginx="/usr/sbin/nginx",
    nginx_version=(1, 30, 0), app="app.main:app", gunicorn_conf="app/gunicorn.conf.py",
    inference_timeout_s=30.0, startup_timeout_s=120.0, settings={"KRONOS_MODEL": "m", "KRONOS_THREADS": "3"},
)  # fmt: skip


def test_a_worker_is_one_gunicorn_with_everything_else_in_its_environment() -> None:
    """argv is the same for all workers; name, port and threads come by the environment; foreign settings go."""
    argv = commands.worker_argv(PLAN, FOLDERS)
    assert argv[1:] == ["-m", "gunicorn", "-c", "/repo/app/gunicorn.conf.py", "--chdir", "/repo", "app.main:app"]
    base = {"PATH": "/bin", "KRONOS_MODEL": "another", "KRONOS_WATCHDOG": "5", "OMP_NUM_THREADS": "64"}
    assert commands.worker_env(PLAN, "worker-2", 8102, base) == {
        "PATH": "/bin",
        "KRONOS_MODEL": "m",
        "KRONOS_THREADS": "3",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "NUMEXPR_NUM_THREADS": "3",
        "PYTHONUNBUFFERED": "1",
        "KRONOS_BIND": "127.0.0.1:8102",
        "KRONOS_WORKER_NAME": "worker-2",
    }


@pytest.mark.parametrize("workers, cores, threads", [(1, 1, 1), (1, 8, 8), (5, 2, 1), (5, 16, 3), (4, 16, 4), (64, 2, 1)])
def test_threads_times_workers_do_not_exceed_the_cores(workers: int, cores: int, threads: int) -> None:
    """The default is a fair share of the cores, and at least one thread."""
    assert plan.threads_per_worker(workers, cores) == threads


@pytest.mark.parametrize("user, globals_", [(None, ""), ("owner staff", " user owner staff;")])
def test_nginx_stays_in_its_prefix(user: str | None, globals_: str) -> None:
    """Nothing is read or written outside .run; only root may and must choose a user."""
    argv = commands.nginx_argv(PLAN, FOLDERS, user, "-t")
    assert argv == [
        "/usr/sbin/nginx", "-p", "/repo/.run/nginx/", "-c", "/repo/.run/nginx/nginx.conf",
        "-e", "/repo/.run/logs/nginx.log", "-g",
        f"daemon off; error_log /repo/.run/logs/nginx.log warn;{globals_}", "-t",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, version",
    [("nginx version: nginx/1.22.1", (1, 22, 1)), ("nginx version: nginx/1.31.3 (x)", (1, 31, 3)), ("apache", ())],
)
def test_the_version_of_nginx_is_read(text: str, version: tuple[int, ...]) -> None:
    """It decides which directives may be used."""
    assert commands.nginx_version(text) == version


def test_the_upstream_lists_every_worker_twice() -> None:
    """Once with ejection, once as the last resort; with the directives that make least_conn and keep-alive work."""
    text = commands.upstream_conf(PLAN, [8101, 8103])
    for port in (8101, 8103):
        assert f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" in text
        assert f"server 127.0.0.1:{port} max_fails=0;" in text
    assert text.count("least_conn;") == text.count("zone kronos") == 2
    assert text.count("keepalive 64;") == 1


@pytest.mark.parametrize("version, expected", [((1, 22, 1), False), ((1, 27, 3), False), ((1, 27, 4), True), ((1, 31), True)])
def test_a_new_directive_is_used_only_where_it_exists(version: tuple[int, ...], expected: bool) -> None:
    """nginx 1.22 must start with what is rendered for it."""
    text = commands.upstream_conf(replace(PLAN, nginx_version=version), [8101])
    assert ("keepalive_min_timeout" in text) == expected


@pytest.mark.parametrize("inference_s", [30.0, 0.5, 600.0])
def test_the_ladder_of_timeouts(inference_s: float) -> None:
    """Worker deadline < its graceful stop < nginx's patience < nginx's bound for an old process."""
    text = commands.upstream_conf(replace(PLAN, inference_timeout_s=inference_s), [8101])
    read = re.search(r"proxy_read_timeout ([\d.]+)s;", text)
    shutdown = re.search(r"worker_shutdown_timeout ([\d.]+)s;", (ROOT / "nginx" / "nginx.conf").read_text())
    assert read and shutdown
    assert inference_s + 2 < float(read[1]) < float(shutdown[1])


def test_the_local_and_the_container_list_say_the_same() -> None:
    """Two places, one meaning: same directives with the same values, but for where the workers are."""
    container = re.sub(r"#.*", "", (ROOT / "nginx" / "containers" / "upstream.conf").read_text())
    container = container.replace("${PROXY_READ_TIMEOUT}", "34s").partition("geo ")[0]  # who may see Grafana
    container = re.sub(r"include .*;", "", container)  # other hosts, the exporter's lines
    local = re.sub(r"#.*", "", commands.upstream_conf(PLAN, [8101]))
    container = re.sub(r"\n?resolver\w* .*;", "", container).replace("worker:8000 resolve", "127.0.0.1:8101")
    assert sorted(container.split()) == sorted(local.split())


TUNED = re.compile(
    r"\s*(worker_\w+|\w*keepalive\w*|\w+_timeout|client_\w+_size|proxy_\w*buffer\w*|large_client_header_buffers"
    r"|proxy_next_upstream_tries|resolver_timeout|server_tokens|tcp_nodelay|merge_slashes|recursive_error_pages) .*;"
)


@pytest.mark.parametrize("name", ["nginx.conf", "containers/upstream.conf"])
def test_each_tuned_directive_names_its_default(name: str) -> None:
    """A number without a reason cannot be changed with confidence: what, why, and what nginx would do by itself."""
    tuned = [line for line in (ROOT / "nginx" / name).read_text().splitlines() if TUNED.match(line)]
    assert len(tuned) > 5
    assert [line for line in tuned if "default" not in line.partition("#")[2]] == []


def test_dry_run_prints_what_a_shell_could_run_and_touches_nothing(tmp_path: Path) -> None:
    """Every program with its environment, every file, every wait; no process, no file."""
    rehearsed = Live(tmp_path / "run", port=18999, worker_port=19001)
    code, said = rehearsed.cli("up", "--dry-run", "--workers", "2", "--port", "18999", "--worker-port", "19001", *STUB)
    assert code == 0, said
    place = 0
    for step in (
        r"^start .*KRONOS_BIND=127.0.0.1:19001 KRONOS_WORKER_NAME=worker-1 .*-m gunicorn",
        r"^start .*KRONOS_BIND=127.0.0.1:19002 KRONOS_WORKER_NAME=worker-2 .*-m gunicorn",
        r"^wait until worker-1, worker-2 ready",
        r"^write .*/upstream.conf",
        r"^run .*nginx.* -t -q$",
        r"^start .*nginx.*daemon off",
        r"^wait until nginx answers",
    ):
        found = re.compile(step, re.MULTILINE).search(said, place)
        assert found, (step, said)
        place = found.end()
    assert not (tmp_path / "run").exists()


def test_the_state_survives_its_file() -> None:
    """What is written is what is read, for every field."""
    fleet = Fleet(PLAN, (Worker(1, 8101, Process(7, 70)),), (Worker(2, 8102, Process(8, 80)),), Process(9, 90))
    assert from_json(fleet.to_json()) == fleet


EXPOSITION = """
# HELP kronos_requests_total Answers sent
# TYPE kronos_requests_total counter
kronos_requests_total{route="/v1/predict/single",status="200"} 90.0
kronos_requests_total{route="/v1/predict/single",status="429"} 10.0
kronos_requests_total{route="/readyz",status="200"} 5000.0
kronos_request_duration_seconds_bucket{le="0.1",route="/v1/predict/single"} 50.0
kronos_request_duration_seconds_bucket{le="1.0",route="/v1/predict/single"} 90.0
kronos_request_duration_seconds_bucket{le="+Inf",route="/v1/predict/single"} 100.0
kronos_request_duration_seconds_bucket{le="0.1",route="/readyz"} 5000.0
kronos_concurrent_requests 3.0
kronos_queue_depth{priority="interactive"} 4.0
kronos_queue_depth{priority="bulk"} 5.0
python_info{implementation="C\\"Python",version="3.11"} 1.0
"""


def test_metrics_are_read_and_probes_do_not_count() -> None:
    """In flight but the question itself, queue over both priorities, answers and durations of predictions only."""
    found = metrics.numbers(EXPOSITION)
    assert (found.in_flight, found.queued, found.answered) == (2, 9, 100)
    assert found.buckets == [(0.1, 50), (1.0, 90), (float("inf"), 100)]


@pytest.mark.parametrize("q, expected", [(0.25, 0.05), (0.5, 0.1), (0.7, 0.55), (0.9, 1.0), (0.99, 1.0)])
def test_quantiles_are_those_of_prometheus(q: float, expected: float) -> None:
    """Linear inside a bucket; above the last bound, that bound."""
    assert metrics.quantile(metrics.numbers(EXPOSITION).buckets, q) == pytest.approx(expected)


def test_no_observation_has_no_quantile() -> None:
    """An idle worker shows no latency rather than a wrong one."""
    assert metrics.quantile([], 0.95) is None
    assert metrics.quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.95) is None


def test_a_restarted_worker_has_no_negative_rate() -> None:
    """Counters that fell mean a new process: everything it has counted is new."""
    before = metrics.numbers(EXPOSITION)
    after = replace(before, answered=3.0)
    assert after.since(before) == after
    assert before.since(before).answered == 0


SUPERVISOR = (
    '{"level":"error","logger":"gunicorn.error","message":"Worker (pid:7) exited with code 3."}\n'
    "[2026-01-01 00:00:00 +0000] [7] [INFO] Worker exiting (pid: 7)\n"
    "[2026-01-01 00:00:00 +0000] [7] [ERROR] Reason: Worker failed to boot.\n"
)


@pytest.mark.parametrize(
    "log, sentence",
    [
        ("", "it said nothing"),
        ('{"level":"info","message":"hello"}\n{"level":"error","message":"no such folder"}\n', "no such folder"),
        ('{"level":"error","message":"loading","exception":"Traceback\\n File x\\nBad: torn"}\n', "loading: Bad: torn"),
        ("Traceback (most recent call last):\n  File y\nImportError: no x\n", "ImportError: no x"),
        ("[2026-01-01 00:00:00 +0000] [7] [ERROR] Connection in use: 8101\n", "Connection in use: 8101"),
        ("nginx: [emerg] bind() to 0.0.0.0:80 failed\nmore\n", "nginx: [emerg] bind() to 0.0.0.0:80 failed"),
        ("only\nwords\n", "words"),
    ],
)
def test_the_line_that_says_why(log: str, sentence: str) -> None:
    """The reason, not what the supervisor says after it, in every form logs have here."""
    assert journal.last_useful_line(log) == sentence
    assert journal.last_useful_line(log + SUPERVISOR) == sentence


def test_following_sees_whole_lines_and_a_log_that_begins_anew(tmp_path: Path) -> None:
    """logs -f: nothing old, nothing half, and no silence after a restart."""
    log = tmp_path / "worker-1.log"
    log.write_text("old\n")
    steps: Iterator[str] = iter(["new\nha", "new\nhalf\n", "again\n", ""])

    def sleep(_seconds: float) -> None:
        text = next(steps)
        log.write_text(text if text == "again\n" else "old\n" + text)

    followed = journal.follow({"worker-1": log}, sleep)
    assert [next(followed) for _ in range(3)] == [("worker-1", "new"), ("worker-1", "half"), ("worker-1", "again")]


def test_the_defaults_agree_with_the_worker() -> None:
    """The fleet asks the worker's own code for its settings, without importing it."""
    effective = effective_settings({}, {"KRONOS_INFERENCE_TIMEOUT": "12"}, ROOT)
    assert effective["inference_timeout"] == 12 and effective["model"].endswith("models/demo/model")
    assert json.dumps(effective)


def test_503_means_that_this_worker_cannot_serve() -> None:
    """nginx asks another worker after a 503 and leaves the first one out; that is right only while no worker says
    503 for being busy. (Jobs go through an upstream that leaves nobody out.)"""
    assert {kind for kind, row in ERROR_TABLE.items() if row.status == 503} == {"not-ready", "draining", "jobs-unavailable"}
