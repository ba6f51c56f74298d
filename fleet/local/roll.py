"""All workers replaced by those of a new plan, start-first, one at a time, without losing a request.

Knows: the order for one worker (start its successor, wait until it serves, give nginx the new list, drain, stop) and
what to do when a successor does not serve. Does not know: where the new plan comes from.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from fleet.desk import uninterrupted
from fleet.errors import RollHalted, WorkerFailed
from fleet.local import nginx, workers
from fleet.local.converge import converge, grace_s, settle
from fleet.local.desk import LocalDesk
from fleet.state import Fleet, Plan, Worker


def roll(desk: LocalDesk, fleet: Fleet, plan: Plan) -> Fleet:
    """Replace every worker by one of ``plan``. Raises RollHalted, NginxFailed, PortInUse, StillRunning.

    Until the last one is replaced the fleet remembers its old plan: whatever ends this roll, the next verb finds a
    plan that has worked, and another roll begins anew.
    """
    if fleet.coming or fleet.leaving:  # of a verb that did not end
        left = (*fleet.leaving, *([fleet.coming] if fleet.coming else []))
        fleet = settle(desk, desk.remember(replace(fleet, leaving=left, coming=None)), changed=True)
    for done, old in enumerate(fleet.workers):
        desk.say(f"Replacing {old.name} ({done + 1} of {len(fleet.workers)})")
        fleet = replace_one(desk, fleet, plan, old, done)
    patience = fleet.plan.inference_timeout_s
    fleet = desk.remember(replace(fleet, plan=plan))
    if patience != plan.inference_timeout_s and fleet.nginx is not None:
        nginx.render(desk, fleet, [worker.port for worker in fleet.workers])
        nginx.reload(desk, fleet.nginx)
    return converge(desk, fleet, plan.workers)  # those that were missing before


def replace_one(desk: LocalDesk, before: Fleet, plan: Plan, old: Worker, done: int) -> Fleet:
    """A successor for ``old``; ``done`` are replaced already. When it does not serve, it is stopped, ``old`` stays."""
    try:
        fleet = workers.start_successor(desk, before, plan, old.number)
        new = fleet.coming
        assert new is not None
        workers.wait_ready(desk, [new], plan.startup_timeout_s, workers.NEXT)
    except BaseException as error:
        with uninterrupted():
            coming = desk.fleet.coming if desk.fleet else None
            if coming is not None:
                desk.stop({coming.name: coming.process}, signal.SIGTERM, grace_s(before))
            desk.remember(before)
        if isinstance(error, WorkerFailed):
            raise RollHalted.because(error.what, done, len(before.workers), "python -m fleet roll", error.then) from error
        raise
    served = tuple(new if worker is old else worker for worker in fleet.workers)
    patience = max(plan.inference_timeout_s, fleet.plan.inference_timeout_s)  # no answer of either plan is cut
    between = replace(fleet.plan, inference_timeout_s=patience)
    fleet = desk.remember(replace(fleet, plan=between, workers=served, leaving=(old,), coming=None))
    workers.take_over_log(desk, old.name)
    return settle(desk, fleet, changed=True)
