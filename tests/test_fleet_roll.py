"""A local roll: the order of things, and what is left when it does not end, on a scripted machine with a fake clock."""

from __future__ import annotations

import argparse
import io
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fleet.errors import MissingModel, RollHalted
from fleet.local import plan
from fleet.local.converge import converge
from fleet.local.desk import LocalDesk
from fleet.local.roll import roll
from fleet.state import Fleet, Folders, Plan, from_json
from tests.fleet.scripted import NEVER, Life, Scripted

ROOT = Path(__file__).resolve().parents[1]
PLAN = Plan(
    workers=2, host="127.0.0.1", port=8080, first_worker_port=8101, threads=1, nginx="nginx",
    nginx_version=(1, 30, 0), app="app.main:app", gunicorn_conf="app/gunicorn.conf.py",
    inference_timeout_s=30.0, startup_timeout_s=120.0, settings={"KRONOS_SLOTS": "8"},
)  # fmt: skip
NEXT = replace(PLAN, settings={"KRONOS_SLOTS": "16"}, generation=2)
TORN = Life(dies_after=2, ready_after=NEVER, says='{"level":"error","message":"the weights are torn"}')


def up(machine: Scripted, workers: int = 2) -> tuple[LocalDesk, Fleet]:
    """A fleet that is up, with the journal of its start forgotten."""
    at = LocalDesk(machine, Folders(ROOT, Path("run")), Console(file=io.StringIO()), {})
    fleet = converge(at, Fleet(replace(PLAN, workers=workers)), workers)
    machine.journal.clear()
    return at, fleet


def remembered(machine: Scripted) -> Fleet:
    return from_json(machine.files[Path("run/fleet.json")])


def serving(machine: Scripted) -> list[str]:
    """Who lives, by the name of the log it was started with."""
    return [being.name for being in machine.beings.values() if machine.clock < being.ends]


def test_one_after_the_other_and_the_successor_first() -> None:
    """Start, wait, list, reload, drain, stop; and only then the next. Names stay, each plan is the new one."""
    machine = Scripted({"worker-1-next": Life(ready_after=7)})
    at, fleet = up(machine)
    fleet = roll(at, fleet, NEXT)
    assert machine.journal == [
        "start worker-1-next", "log worker-1-next becomes worker-1", "list 8103 8102", "reload", "TERM worker-1",
        "start worker-2-next", "log worker-2-next becomes worker-2", "list 8103 8101", "reload", "TERM worker-2",
    ]  # fmt: skip
    assert fleet.plan == NEXT and [worker.name for worker in fleet.workers] == ["worker-1", "worker-2"]
    assert fleet.of_another_generation == [] and fleet.leaving == () and fleet.coming is None
    assert remembered(machine) == fleet


def test_never_fewer_than_before_are_ready() -> None:
    """At every moment as many ready workers are on nginx's list as there are workers."""
    machine = Scripted({f"worker-{number}-next": Life(ready_after=5) for number in (1, 2)})
    at, fleet = up(machine)
    seen: list[int] = []

    def count() -> None:
        ports = {worker.port for worker in remembered(machine).workers}
        ready = [machine.get("", port, "/readyz") for port in ports]
        seen.append(sum(answer is not None and answer.status == 200 for answer in ready))

    machine.when = {"reload": count, "TERM worker-1": count, "TERM worker-2": count}
    roll(at, fleet, NEXT)
    assert seen == [2] * 4


@pytest.mark.parametrize("bad, done", [("worker-1-next", 0), ("worker-2-next", 1)])
@pytest.mark.parametrize(
    "life, words", [(TORN, "the weights are torn"), (Life(ready_after=NEVER, says="loading"), "not ready after 120 s: loading")]
)
def test_a_successor_that_does_not_serve_halts_the_roll(bad: str, done: int, life: Life, words: str) -> None:
    """It is stopped, the others serve on, the plan that has worked is remembered, and the reason is told."""
    machine = Scripted({bad: life})
    at, fleet = up(machine)
    with pytest.raises(RollHalted, match=words) as caught:
        roll(at, fleet, NEXT)
    assert "The roll has halted" in caught.value.what and "python -m fleet roll" in caught.value.then
    assert f"logs {bad}" in caught.value.then
    left = remembered(machine)
    assert left.plan == PLAN and left.coming is None and left.leaving == ()
    assert len(serving(machine)) == 3 and bad not in serving(machine)
    assert len(left.of_another_generation) == done
    assert (left == fleet) == (done == 0)


def test_ctrl_c_stops_the_successor_and_nothing_else() -> None:
    """Interrupted while it loads: the fleet is the one from before."""
    machine = Scripted({"worker-1-next": Life(ready_after=50)})
    at, fleet = up(machine)
    machine.when = {"start worker-1-next": lambda: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        roll(at, fleet, NEXT)
    assert machine.journal == ["start worker-1-next", "TERM worker-1-next"]
    assert remembered(machine) == fleet


MOMENTS = ["waiting for worker-1-next", "log worker-1-next becomes worker-1", "list 8103 8102", "reload", "TERM worker-1"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("verb", ["up", "roll"])
def test_killed_at_any_moment_the_next_verb_completes_or_repeats(moment: str, verb: str) -> None:
    """kill −9 of the command: up leaves as many workers as before, another roll as many new ones, and nothing else
    runs."""
    machine = Scripted({"worker-1-next": Life(ready_after=1)})
    at, fleet = up(machine)
    copies: list[Scripted] = []

    def copy() -> None:
        copies.append(deepcopy(machine))

    machine.when = {moment: copy}
    if moment.startswith("waiting"):
        machine.when = {"start worker-1-next": lambda: setattr(machine, "on_sleep", copy)}
    roll(at, fleet, NEXT)
    then = copies[0]
    then.when, then.on_sleep = {}, None
    at = replace(at, host=then)
    found = remembered(then)
    assert {being.process for being in then.beings.values()} == {*found.processes.values()}
    again = converge(at, found, found.plan.workers) if verb == "up" else roll(at, found, NEXT)
    assert len(again.workers) == 2 and again.coming is None and again.leaving == ()
    assert {being.process for being in then.beings.values() if then.clock < being.ends} == {*again.processes.values()}
    if verb == "roll":
        assert again.of_another_generation == [] and again.plan == NEXT


def test_a_longer_patience_holds_while_both_plans_serve() -> None:
    """Neither the old workers' answers nor the new ones' are cut by nginx; afterwards the new plan's bound is right."""
    machine = Scripted()
    at, fleet = up(machine)
    written: list[str] = []
    machine.when = {"reload": lambda: written.append(machine.files[Path("run/nginx/upstream.conf")])}
    roll(at, fleet, replace(NEXT, inference_timeout_s=10.0))
    assert [text.partition("proxy_read_timeout ")[2].partition(";")[0] for text in written] == ["34s", "34s", "14s"]


def test_missing_workers_come_back_with_the_new_plan() -> None:
    """A roll leaves as many workers as the plan says, also when some were gone before."""
    machine = Scripted()
    at, fleet = up(machine)
    [first, second] = fleet.workers
    fleet = roll(at, replace(fleet, workers=(first,)), NEXT)
    assert [worker.generation for worker in fleet.workers] == [2, 2]
    assert second.process not in [worker.process for worker in fleet.workers]


OPTIONS = argparse.Namespace(model=None, tokenizer=None)


def test_the_new_plan_has_the_settings_of_now_in_the_same_place() -> None:
    """Settings come from the environment of the roll; model and place stay unless the roll names another model."""
    folders = Folders(ROOT, ROOT / ".run")
    old = replace(PLAN, settings={"KRONOS_SLOTS": "8", "KRONOS_MODEL": "models/demo/model", "KRONOS_THREADS": "1"})
    new = plan.renew(old, OPTIONS, {"KRONOS_DTYPE": "bfloat16", "KRONOS_INFERENCE_TIMEOUT": "12"}, folders)
    assert new.settings["KRONOS_MODEL"] == "models/demo/model" and "KRONOS_SLOTS" not in new.settings
    assert (new.inference_timeout_s, new.generation, new.port, new.workers) == (12, 2, old.port, old.workers)
    assert "KRONOS_SLOTS: 8 → (default)" in plan.differences(old, new)
    assert plan.differences(old, old) == []
    with pytest.raises(MissingModel):
        plan.renew(old, argparse.Namespace(model="tests", tokenizer=None), {}, folders)
