"""One worker's life as a container: started, waited for, stopped, and the line that says why it did not serve.

Knows: the engine's states, health, logs. Does not know: in which order a change is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.compose import commands
from fleet.compose.containers import GONE, Container
from fleet.compose.engine import MARGIN_S, Engine
from fleet.errors import WorkerFailed
from fleet.journal import last_useful_line
from fleet.runtime import READY

LOOK_EVERY_S = 0.5
"""Each look starts a docker command, which is not free on the machine that also computes."""
START_MARGIN_S = 30.0
"""Beyond the workers' own bound for their start: creating a container, and the next health check."""
LOG_LINES = 200


def start(engine: Engine, total: int) -> None:
    """As many new ones as are missing to ``total``; those that run are not touched."""
    engine.call(commands.up_workers(engine.place, total), 2 * MARGIN_S)


def strangers(engine: Engine, known: Sequence[Container]) -> list[Container]:
    """The workers that are not among ``known``."""
    ids = {each.id for each in known}
    return [each for each in engine.workers() if each.id not in ids]


def wait_ready(engine: Engine, known: Sequence[Container], expected: int, startup_s: float) -> None:
    """Until ``expected`` workers that are not among ``known`` are healthy.

    Raises WorkerFailed, with the reason from the log, at the first that cannot be.
    """
    with engine.desk.bar() as bar:
        task = bar.add_task("waiting for new workers", total=expected)

        def all_ready() -> bool:
            new = strangers(engine, known)
            if len(new) < expected:
                raise WorkerFailed(f"of {expected} new workers {len(new)} are left", f"{engine.command} status")
            for each in new:
                if each.status in GONE or each.status == "restarting" or each.restarts:
                    raise failed(engine, each, "ended before it was ready")
                if each.state == "unhealthy":
                    raise failed(engine, each, "is unhealthy")
            pending = [each.name for each in new if each.state != READY]
            text = f"waiting for {', '.join(pending)}" if pending else "all workers ready"
            bar.update(task, completed=expected - len(pending), description=text)
            return not pending

        limit, names = startup_s + START_MARGIN_S, f"{expected} new worker{'s' if expected > 1 else ''}"
        if not engine.desk.host.wait(f"{names} healthy", all_ready, limit, LOOK_EVERY_S):
            late = next(each for each in strangers(engine, known) if each.state != READY)
            raise failed(engine, late, f"was not ready after {limit:g} s")


def failed(engine: Engine, worker: Container, how: str) -> WorkerFailed:
    """The error of a worker that does not serve; its log is kept, since its container will not be."""
    kept = engine.desk.folders.log(worker.name)
    said = "\n".join(engine.desk.host.lines(commands.container_logs(worker.full_name, LOG_LINES), engine.desk.env))
    engine.desk.host.write(kept, said + "\n")
    return WorkerFailed(f"{worker.name} {how}: {last_useful_line(said)}", f"read {kept}")


def retire(engine: Engine, worker: Container, grace_s: float) -> None:
    """SIGTERM, time for its last answers, gone."""
    engine.call(commands.stop(worker.full_name, grace_s), grace_s + MARGIN_S)
    engine.call(commands.remove(worker.full_name))


def discard(engine: Engine, worker: Container) -> None:
    """Gone at once: it has nothing to answer."""
    engine.call(commands.remove(worker.full_name))
