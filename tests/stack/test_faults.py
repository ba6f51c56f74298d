"""What breaks in production, done to real containers under a steady load, each answer compared.

The numbers F2, F3, … are those of the faults that the fleet has to survive. Grafana is down in all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.stack.proof import Figures, Known, outage, steady, summary
from tests.stack.stack import Container, Stack, command, wait_until

CHILD = "print(open('/proc/1/task/1/children').read())"
SIGNAL = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"
KILL, TERM, STOP = "9", "15", "19"
LONG_RATE = 20.0


def python(container: Container, code: str, *arguments: str) -> str:
    """What a program says inside a container; as a worker's own user."""
    return command("docker", "exec", container.id, "python", "-c", code, *arguments).strip()


def child(container: Container) -> str:
    """The process that serves, inside its container; "" while there is none."""
    return python(container, CHILD)


def ready(container: Container) -> bool:
    try:
        return "ok" in command("docker", "exec", container.id, "python", "-m", "app.probe", "/readyz")
    except RuntimeError:
        return False


def tried_again(stack: Stack, since: float) -> int:
    """Requests since a time (epoch) that needed more than one worker, and were answered."""
    (nginx,) = stack.containers("nginx")
    lines = command("docker", "logs", "--since", f"{since:.3f}", nginx.id).splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return sum("," in entry["upstream"] and entry["status"] == 200 for entry in entries)


def test_docker_kill_mid_request(stack: Stack, long: Known, figures: Figures) -> None:
    """F2, five times: 0 failed. Docker takes a kill by the operator for an order, so `docker compose up -d` brings it back."""
    began, back = time.time(), []
    with steady(stack.port, long, LONG_RATE) as traffic:
        for kill in range(5):
            time.sleep(1)
            killed = time.perf_counter()
            command("docker", "kill", stack.containers()[kill % 3].id)
            time.sleep(1)
            stack.up(3)
            back.append(round(time.perf_counter() - killed, 1))
    figures.keep(back_after_s=back, tried_again=tried_again(stack, began), **summary(traffic, long))
    assert traffic.failures == [] and tried_again(stack, began) > 0
    assert max(back) < 30


def test_kill_9_of_the_serving_process(stack: Stack, long: Known, figures: Figures) -> None:
    """F2, from within: the supervisor starts another one; five times 0 failed. (Eight users: somebody is being served.)"""
    began, back = time.time(), []
    with stack.load(long.requests, users=8, pause=(0.0, 0.0)) as traffic:
        for kill in range(5):
            time.sleep(1)
            worker = stack.containers()[kill % 3]
            before = child(worker)
            python(worker, SIGNAL, before, KILL)
            back.append(round(wait_until(lambda w=worker, b=before: child(w) not in {b, ""} and ready(w), 30), 1))  # type: ignore[misc]
    figures.keep(back_after_s=back, tried_again=tried_again(stack, began), **summary(traffic, long))
    assert traffic.failures == [] and tried_again(stack, began) > 0


def test_a_stopped_process_is_replaced(stack: Stack, long: Known, figures: Figures) -> None:
    """F3: SIGSTOP inside a container: its requests are answered by others once it is killed, within 30 s; 0 failed."""
    worker = stack.containers()[0]
    before = child(worker)
    with steady(stack.port, long, LONG_RATE) as traffic:
        time.sleep(2)
        python(worker, SIGNAL, before, STOP)
        took = wait_until(lambda: child(worker) not in {before, ""} and ready(worker), 40)
        time.sleep(3)
    figures.keep(replaced_after_s=round(took, 1), **summary(traffic, long))
    assert traffic.failures == [] and took <= 30


def test_a_worker_that_exits_is_started_again(stack: Stack, long: Known, figures: Figures) -> None:
    """The engine's restart policy brings back what ended by itself; until it is ready, nobody is sent there in vain."""
    worker = stack.containers()[0]
    with steady(stack.port, long, LONG_RATE) as traffic:
        time.sleep(1)
        python(worker, SIGNAL, "1", TERM)
        began = time.perf_counter()
        restarted = wait_until(lambda: restarts(worker) > worker.facts["RestartCount"], 60)
        up = restarted + wait_until(lambda: ready(worker), 60)
        time.sleep(5)
    later = [each for each in traffic.exchanges if each.begun > began - traffic.began + up + 2]
    figures.keep(started_again_after_s=round(restarted, 1), ready_after_s=round(up, 1), **summary(traffic, long))
    assert traffic.failures == []
    assert worker.host_name in {each.served_by for each in later}


def restarts(container: Container) -> int:
    """How often the engine has started it again."""
    return int(command("docker", "inspect", "--format", "{{.RestartCount}}", container.id))


@contextmanager
def paused(container: Container) -> Iterator[None]:
    """Frozen by the engine: no process of it runs, connections to it still open."""
    command("docker", "pause", container.id)
    try:
        yield
    finally:
        command("docker", "unpause", container.id)


def test_a_pause_of_five_seconds(stack: Stack, known: Known, figures: Figures) -> None:
    """0 failed: what waits in the paused worker is answered late, everything else goes to the others."""
    worker = stack.containers()[0]
    with steady(stack.port, known) as traffic:
        time.sleep(2)
        with paused(worker):
            time.sleep(5)
        time.sleep(5)
    late = [each for each in traffic.exchanges if each.seconds > 0.5]
    figures.keep(late=len(late), **summary(traffic, known))
    assert traffic.failures == [] and len(late) <= 20


def test_a_pause_longer_than_nginx_waits(stack: Stack, known: Known, figures: Figures) -> None:
    """Stated, not hidden: nginx's patience is a request's whole deadline, so who is caught gets 504; the worker is then left
    out for two seconds at a time, so it catches few; everybody else is answered, and all of them afterwards."""
    stack.env = {"PROXY_READ_TIMEOUT": "3s"}
    stack.up(3)
    try:
        worker = stack.containers()[0]
        with steady(stack.port, known) as traffic:
            time.sleep(2)
            began = time.perf_counter() - traffic.began
            with paused(worker):
                time.sleep(15)
            ended = time.perf_counter() - traffic.began
            time.sleep(5)
    finally:
        stack.env = {}
    during = [each for each in traffic.exchanges if began <= each.begun <= ended]
    figures.keep(pause_s=15, patience_s=3, during_pause=len(during), **summary(traffic, known))
    assert {each.failure for each in traffic.failures} <= {"status 504"}
    assert len(traffic.failures) < 0.05 * len(during)
    assert all(each in during for each in traffic.failures)


def test_nginx_restarts(stack: Stack, known: Known, figures: Figures) -> None:
    """The one outage: there is one door. While it is closed clients are refused a connection, and in the moment in which it
    looks its workers up again they may be answered 502; before and after, 0 failed."""
    with steady(stack.port, known) as traffic:
        time.sleep(3)
        began = time.perf_counter() - traffic.began
        stack.compose("restart", "nginx")
        took = time.perf_counter() - traffic.began - began
        time.sleep(5)
    closed = outage(traffic)
    figures.keep(outage_s=round(closed, 2), restart_took_s=round(took, 2), **summary(traffic, known))
    assert all(each.status in (0, 502) for each in traffic.failures)
    assert all(began - 0.1 <= each.begun <= began + took + 1 for each in traffic.failures)
    assert closed < 10


def test_what_only_watches_may_be_down(stack: Stack, known: Known, figures: Figures) -> None:
    """Prometheus and the exporter stopped, and nginx started without them: predictions 100 %."""
    stack.compose("stop", "prometheus", "nginx-exporter")
    stack.compose("restart", "nginx")
    wait_until(lambda: stack.containers("nginx")[0].healthy, 30)
    with steady(stack.port, known) as traffic:
        time.sleep(5)
        stack.compose("start", "prometheus", "nginx-exporter")
        time.sleep(5)
    figures.keep(**summary(traffic, known))
    assert traffic.failures == []


def test_a_hundred_reloads(stack: Stack, known: Known, figures: Figures) -> None:
    """F7: 0 failed."""
    (nginx,) = stack.containers("nginx")
    with steady(stack.port, known) as traffic:
        for _ in range(100):
            command("docker", "kill", "--signal", "HUP", nginx.id)
            time.sleep(0.05)
        time.sleep(2)
    figures.keep(**summary(traffic, known))
    assert traffic.failures == []
