"""Prometheus's configuration and rules, and the program that turns nginx's log into metrics: right before they run.

Whether the live Prometheus finds the workers and counts every request is the business of tests/stack/test_prometheus_live.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metrics import SECONDS
from tests import series

ROOT = series.ROOT
FOLDER = ROOT / "prometheus"
EXPORTER = ROOT / "nginx" / "exporter"
CASES = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS = [rule for rule in series.rules() if "alert" in rule]
RECORDS = [rule for rule in series.rules() if "record" in rule]


def run(tool: str, image: str, folder: Path, *arguments: str) -> str:
    """What a tool says, run in a folder: the one on PATH, else that of an image which is already here. Skips without either."""
    argv = [tool]
    if shutil.which(tool) is None:
        if not has_image(image):
            pytest.skip(f"neither {tool} on PATH nor the image {image} here")
        argv = ["docker", "run", "--rm", "--pull", "never", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}",
                "-v", f"{folder}:{folder}:ro", "-w", str(folder), "--entrypoint", tool, image]  # fmt: skip
    done = subprocess.run([*argv, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def has_image(image: str) -> bool:
    docker = shutil.which("docker")
    return docker is not None and not subprocess.run([docker, "image", "inspect", image], capture_output=True).returncode


def promtool(*arguments: str) -> str:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return run("promtool", compose["services"]["prometheus"]["image"], FOLDER, *arguments)


def fires(alert: str) -> list[bool]:
    """For each case that asks whether an alert fires: whether it must."""
    asked = re.compile(rf'ALERTS\{{alertname=(~?)"([^"]*\b)?{alert}\b')
    return [
        bool(case["exp_samples"])
        for path in CASES
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["promql_expr_test"]
        if asked.match(case["expr"])
    ]


def test_prometheus_accepts_configuration_and_rules() -> None:
    """The server would start with these files; names and types of the rules are as its own linter wants them."""
    said = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert f"{len(series.RULES)} rule files found" in said


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rules_say_what_their_cases_say(path: Path) -> None:
    """Every alert fires when it must and is silent when it must be; every recorded series has the value it should."""
    promtool("test", "rules", f"tests/{path.name}")


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    """An alert that always or never fires is found. The dead man's switch always does."""
    assert set(fires(alert)) == ({True} if alert == "DeadMan" else {True, False})


@pytest.mark.parametrize("record", [rule["record"] for rule in RECORDS])
def test_every_recorded_series_is_tested(record: str) -> None:
    """By a case of its own, or by an alert that reads it (whose cases depend on it)."""
    by_cases = any(record in series.read(test["expr"]) for path in CASES for test in cases(path))
    assert by_cases or any(record in series.read(rule["expr"]) for rule in ALERTS)


def cases(path: Path) -> list[dict[str, Any]]:
    return [case for test in yaml.safe_load(path.read_text())["tests"] for case in test["promql_expr_test"]]


@pytest.mark.parametrize("rule", series.rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_read_only_series_that_exist(rule: dict[str, Any]) -> None:
    """A renamed metric cannot leave behind an alert that never fires."""
    known = series.of_workers() | series.of_nginx() | series.recorded() | series.PROMETHEUS
    assert series.read(rule["expr"]) - known == set()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases_use_only_series_that_exist(path: Path) -> None:
    """A case with a misspelt series would test nothing."""
    known = series.of_workers() | series.of_nginx() | series.PROMETHEUS
    given = {name for test in yaml.safe_load(path.read_text())["tests"] for one in test.get("input_series", [])
             for name in series.read(one["series"])}  # fmt: skip
    assert given - known == set()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    """Whoever is woken reads one sentence, the value, and a command to type."""
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in {"page", "ticket", "none"}
    assert set(notes) == {"summary", "description", "runbook"}
    assert "$value" in notes["description"]
    assert re.search(r"`(docker|python -m fleet) [^`]+`", notes["runbook"]) and notes["runbook"].endswith(".")
    assert "{{" not in notes["runbook"] + notes["summary"]


def test_alerts_ask_for_objectives_and_do_not_repeat_them() -> None:
    """The promises stand in one file: no other rule has their numbers."""
    promised = {rule["expr"] for rule in series.rules() if rule.get("record", "").startswith("fleet:objective_")}
    numbers = {text.removeprefix("vector(").rstrip(")") for text in promised}
    others = " ".join(rule["expr"] for rule in series.rules() if rule["expr"] not in promised)
    assert len(numbers) == 2
    assert not [number for number in numbers if re.search(rf"(?<![\w.]){re.escape(number)}(?![\w.])", others)]


def test_prometheus_finds_what_compose_starts() -> None:
    """Every scraped name is a service, and its own path follows from --web.external-url."""
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    jobs = {job["job_name"]: job for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
    assert set(jobs) == {"worker", "nginx", "prometheus"}
    assert jobs["worker"]["dns_sd_configs"][0]["names"] == ["worker"] and "worker" in compose["services"]
    assert jobs["nginx"]["static_configs"][0]["targets"][0].split(":")[0] in compose["services"]
    command = compose["services"]["prometheus"]["command"]
    path = next(option for option in command if option.startswith("--web.external-url")).split("/", 3)[3].strip("/")
    assert jobs["prometheus"]["metrics_path"] == f"/{path}/metrics"


def test_the_proxy_counts_in_the_buckets_of_the_workers() -> None:
    """What nginx and a worker measured of a request can be compared bucket by bucket."""
    declared = re.findall(r"(?m)^histogram \w+ by [\w, ]+ buckets (.+)$", (EXPORTER / "nginx.mtail").read_text())
    assert len(declared) == 2
    assert all([float(edge) for edge in edges.split(",")] == list(SECONDS) for edges in declared)


LINES = """\
<190>Nov 21 13:40:02 nginx: /v1/jobs/{task_id} GET 200 2xx 0.000 89 150 "-" "-" "-"
<190>Nov 21 13:40:02 nginx: /v1/predict/single POST 200 2xx 0.120 100 150 "10.0.0.1:8000, 10.0.0.2:8000" "502, 200" "0.001, 0.119"
<190>Nov 21 13:40:02 nginx: /v1/predict/single POST 504 5xx 9.5 100 150 "10.0.0.1:8000 : 10.0.0.2:8000" "502 : 504" "0.5 : 9.0"
<190>Nov 21 13:40:02 nginx: /v1/predict/single POST 200 2xx 5.0 1 1 "a:1, b:1, c:1 : d:1, e:1, f:1, g:1, h:1" "502, 504, 500 : 502, 502, 502, 502, 200" "1.0, -, 1.0 : 1.0, 0.5, 0.5, 0.5, 2.0"
<190>Nov 21 13:40:02 nginx: /v1/predict/single POST 499 4xx 5.120 100 0 "10.0.0.1:8000" "-" "-"
<190>Nov 21 13:40:02 nginx: /v1/predict/single POST 502 5xx 0.000 100 300 "kronos" "502" "0.000"
<190>Nov 21 13:40:02 nginx: /prometheus GET 200 2xx 0.004 100 300 "10.0.0.9:9090" "200" "0.004"
<190>Nov 21 13:40:02 nginx: {"status":200,"seconds":0.120}
"""  # noqa: E501
COUNTED = {
    'nginx_http_requests_total{method="GET",route="/v1/jobs/{task_id}",status="200"}': 1,
    'nginx_http_requests_total{method="GET",route="/prometheus",status="200"}': 1,
    'nginx_http_requests_total{method="POST",route="/v1/predict/single",status="200"}': 2,
    'nginx_http_requests_total{method="POST",route="/v1/predict/single",status="504"}': 1,
    'nginx_http_requests_total{method="POST",route="/v1/predict/single",status="499"}': 1,
    'nginx_http_request_bytes_total{route="/v1/predict/single"}': 401,
    'nginx_http_response_bytes_total{route="/v1/predict/single"}': 601,
    'nginx_http_requests_retried_total{route="/v1/predict/single"}': 3,
    'nginx_http_requests_last_resort_total{route="/v1/predict/single"}': 2,
    'nginx_http_request_duration_seconds_bucket{class="2xx",route="/v1/predict/single",le="0.15"}': 1,
    'nginx_http_request_duration_seconds_bucket{class="2xx",route="/v1/predict/single",le="+Inf"}': 2,
    'nginx_upstream_requests_total{status="502",upstream="10.0.0.1:8000"}': 2,
    'nginx_upstream_requests_total{status="-",upstream="10.0.0.1:8000"}': 1,
    'nginx_upstream_requests_total{status="200",upstream="10.0.0.2:8000"}': 1,
    'nginx_upstream_requests_total{status="504",upstream="10.0.0.2:8000"}': 1,
    'nginx_upstream_requests_total{status="502",upstream="a:1"}': 1,
    'nginx_upstream_requests_total{status="504",upstream="b:1"}': 1,
    'nginx_upstream_requests_total{status="500",upstream="c:1"}': 1,
    'nginx_upstream_requests_total{status="502",upstream="d:1"}': 1,
    'nginx_upstream_requests_total{status="502",upstream="e:1"}': 1,
    'nginx_upstream_requests_total{status="502",upstream="g:1"}': 1,
    'nginx_upstream_requests_total{status="200",upstream="h:1"}': 1,
    'nginx_upstream_requests_total{status="502",upstream="kronos"}': 1,
    'nginx_upstream_response_duration_seconds_count{upstream="10.0.0.1:8000"}': 2,
    'nginx_upstream_response_duration_seconds_sum{upstream="10.0.0.2:8000"}': 9.119,
    'nginx_upstream_response_duration_seconds_sum{upstream="h:1"}': 2.0,
    "nginx_log_lines_unread_total": 1,
}


def test_every_try_of_a_request_is_counted(tmp_path: Path) -> None:
    """One line of each kind, and the number that each adds to: tries, last resort, clients that left, lines of another format."""
    shutil.copy(EXPORTER / "nginx.mtail", tmp_path)
    (tmp_path / "access.log").write_text(LINES)
    said = run("mtail", "kronos-fleet-nginx-exporter:dev", tmp_path, "--progs=nginx.mtail", "--logs=access.log", "--one_shot",
               "--one_shot_format=prometheus", "--emit_prog_label=false", "--logtostderr")  # fmt: skip
    found = dict(line.rsplit(" ", 1) for line in said.splitlines() if line.startswith("nginx_"))
    assert {name: float(found.get(name, "nan")) for name in COUNTED} == COUNTED
    tries = [float(value) for name, value in found.items() if name.startswith("nginx_upstream_requests_total")]
    assert sum(tries) == 2 + 2 + 8 + 1 + 1  # workers' only, not Prometheus's
