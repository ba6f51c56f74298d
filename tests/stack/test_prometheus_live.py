"""The live Prometheus: it finds the workers as they come and go, and its numbers are those of what was sent."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter

from tests.stack.proof import Known, steady
from tests.stack.stack import Container, Stack, command, wait_until

PREDICT = "/v1/predict/single"
SCRAPE_S = 5.0
FOLLOWS_S = 15.0
FORGETS_S = 30.0
"""The DNS is asked every 2 s, what it said is taken over every 5 s, and stale is who missed two scrapes of 5 s."""
"""Docker's DNS is asked every 2 s, a new target is scraped within 5 s."""
QUANTILE = "histogram_quantile(0.95, sum(rate(inference_duration_seconds_bucket[5m])) by (le))"


def value(stack: Stack, promql: str) -> float:
    """The one number that an expression has; 0 when it has none."""
    found = stack.query(promql)
    assert len(found) <= 1, found
    return float(found[0]["value"][1]) if found else 0.0


def answering(stack: Stack) -> set[str]:
    return {sample["metric"]["instance"] for sample in stack.query('up{job="worker"} == 1')}


def instances(stack: Stack) -> set[str]:
    return {f"{container.address}:8000" for container in stack.containers()}


def counted(stack: Stack) -> Counter[str]:
    """What nginx's metrics say of forecasts: requests by status, how many of them were tried again, and tries."""
    selector = f'{{route="{PREDICT}"}}'
    by_status = {f"status {sample['metric']['status']}": float(sample["value"][1])
                 for sample in stack.query(f"sum by (status) (nginx_http_requests_total{selector})")}  # fmt: skip
    return Counter({name: int(number) for name, number in {
        **by_status,
        "durations": value(stack, f"sum(nginx_http_request_duration_seconds_count{selector})"),
        "tried again": value(stack, f"sum(nginx_http_requests_retried_total{selector})"),
        "tries": value(stack, "sum(nginx_upstream_requests_total)"),
    }.items()})  # fmt: skip


def logged(stack: Stack, since: float) -> list[dict[str, str]]:
    """The forecasts in nginx's JSON log since a time (epoch)."""
    lines = command("docker", "logs", "--since", f"{since:.3f}", nginx(stack).id).splitlines()
    return [entry for entry in map(json.loads, (line for line in lines if line.startswith("{"))) if entry["path"] == PREDICT]


def nginx(stack: Stack) -> Container:
    (found,) = stack.containers("nginx")
    return found


def rules(stack: Stack) -> list[dict[str, str]]:
    groups = stack.prometheus("/api/v1/rules")["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def settle(stack: Stack) -> Counter[str]:
    """The counts once two scrapes agree: nobody asks any more, and the exporter has read all."""
    found = [counted(stack)]

    def unchanged() -> bool:
        found.append(counted(stack))
        return found[-1] == found[-2]

    time.sleep(SCRAPE_S + 1)
    wait_until(unchanged, 60, every_s=SCRAPE_S + 1)
    return found[-1]


def test_every_target_is_found_and_up(stack: Stack) -> None:
    """Each worker by its own address, the front door's exporter, and Prometheus itself; nothing else, nothing down."""
    wait_until(lambda: answering(stack) == instances(stack), FOLLOWS_S)
    wait_until(lambda: not stack.query("up == 0"), FOLLOWS_S)
    assert {(sample["metric"]["job"], sample["metric"]["instance"]) for sample in stack.query("up")} == {
        *(("worker", instance) for instance in instances(stack)),
        ("nginx", "nginx-exporter:9113"),
        ("prometheus", "localhost:9090"),
    }


def test_a_new_worker_is_scraped_within_seconds_and_an_ended_one_forgotten(stack: Stack) -> None:
    """Scaling 3 → 2 → 3: no restart, no reload of Prometheus."""
    stack.up(2)
    wait_until(lambda: answering(stack) == instances(stack) and not stack.query('up{job="worker"} == 0'), FORGETS_S)
    assert len(answering(stack)) == 2
    stack.up(3)
    wait_until(lambda: answering(stack) == instances(stack), FOLLOWS_S)
    assert len(answering(stack)) == 3


def test_the_rules_work_and_the_dead_man_lives(stack: Stack) -> None:
    """Every rule was computed without an error, and the one alert that must always fire does, with its text filled in."""
    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules(stack)), 90)
    assert [rule for rule in rules(stack) if rule["health"] != "ok"] == []
    assert value(stack, "sum(prometheus_rule_evaluation_failures_total)") == 0
    alerts = {alert["labels"]["alertname"]: alert for alert in stack.prometheus("/api/v1/alerts")["data"]["alerts"]}
    assert alerts["DeadMan"]["annotations"]["description"] == "1: as it should be."
    assert "RuleBroken" not in alerts and "TargetDown" not in alerts


def test_no_alertmanager_is_no_error(stack: Stack) -> None:
    """None is found, and Prometheus does not complain about it."""
    assert stack.prometheus("/api/v1/alertmanagers")["data"]["activeAlertmanagers"] == []
    (prometheus,) = stack.containers("prometheus")
    said = subprocess.run(["docker", "logs", prometheus.id], capture_output=True, text=True, check=True).stderr.splitlines()
    assert [line for line in said if "alertmanager" in line and ("level=ERROR" in line or "level=WARN" in line)] == []


def test_the_query_that_users_know_says_how_long_the_model_took(stack: Stack, known: Known) -> None:
    """After load: positive, and no longer than what a worker itself says a whole request took."""
    with steady(stack.port, known) as traffic:
        time.sleep(15)
    assert traffic.failures == []
    wait_until(lambda: bool(stack.query(f"{QUANTILE} > 0")), 2 * SCRAPE_S)
    whole = QUANTILE.replace("inference_duration_seconds", "kronos_request_duration_seconds")
    assert 0 < value(stack, QUANTILE) <= value(stack, whole) < 5


def test_every_request_is_counted_once(stack: Stack, known: Known) -> None:
    """As many as were sent, by status; as many durations; each of them one try."""
    before = settle(stack)
    with steady(stack.port, known) as traffic:
        time.sleep(10)
    wrong = [stack.ask("POST", PREDICT, b"{}").status for _ in range(7)]
    sent = len(traffic.exchanges)
    assert traffic.failures == [] and sent > 200 and wrong == [422] * 7
    grown = settle(stack)
    grown.subtract(before)
    assert {name: number for name, number in grown.items() if number} == {
        "status 200": sent, "status 422": 7, "durations": sent + 7, "tries": sent + 7,
    }  # fmt: skip


def test_a_request_that_was_tried_again_is_counted_as_such(stack: Stack, long: Known) -> None:
    """A worker is killed mid-request: the metrics say the same of it as the JSON log, and users saw nothing."""
    before, began = settle(stack), time.time()
    with stack.load(long.requests, users=8, pause=(0.0, 0.0)) as traffic:
        time.sleep(2)
        command("docker", "kill", stack.containers()[0].id)
        time.sleep(4)
    assert traffic.failures == []
    grown, lines = settle(stack), logged(stack, began)
    grown.subtract(before)
    again = [line for line in lines if "," in line["upstream"] or " : " in line["upstream"]]
    assert len(again) > 0
    assert grown["tried again"] == len(again)
    assert grown["tries"] == sum(len(line["upstream"].replace(" : ", ", ").split(", ")) for line in lines)
    assert grown["status 200"] == len(lines) == len(traffic.exchanges)


def test_nginx_needs_no_exporter_and_finds_a_new_one(stack: Stack, known: Known) -> None:
    """While the exporter is gone requests are answered; when it is back they are counted again, but for the first of each
    nginx process, which finds the socket changed."""
    stack.compose("kill", "nginx-exporter")
    with steady(stack.port, known) as traffic:
        time.sleep(3)
    assert traffic.failures == [] and len(traffic.exchanges) > 60
    wait_until(lambda: value(stack, 'up{job="nginx"}') == 0, FOLLOWS_S)
    stack.compose("up", "-d", "--no-build", "nginx-exporter")
    wait_until(lambda: value(stack, 'up{job="nginx"}') == 1, FOLLOWS_S)
    with steady(stack.port, known) as traffic:
        time.sleep(5)
    processes = 2
    assert traffic.failures == []
    assert len(traffic.exchanges) - processes <= settle(stack)["status 200"] <= len(traffic.exchanges)


def test_metrics_can_be_written_from_outside(stack: Stack) -> None:
    """As k6 does it: remote write through nginx's port. promtool speaks the same protocol."""
    (prometheus,) = stack.containers("prometheus")
    text = "# TYPE kronos_test_pushed gauge\nkronos_test_pushed 42\n"
    argv = ["docker", "exec", "-i", prometheus.id, "promtool", "push", "metrics", "http://nginx:8080/prometheus/api/v1/write"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: value(stack, "kronos_test_pushed") == 42, 5)
