"""Every way a verb can fail: what happened, the next command to type, the exit code.

Knows: sentences and exit codes. Does not know: how they are printed, what the machine did.
"""

from __future__ import annotations

from typing import ClassVar, Self


class FleetError(Exception):
    """Base of all expected failures. ``what`` is one sentence; ``then`` is the next command or step."""

    code: ClassVar[int] = 1

    def __init__(self, what: str, then: str) -> None:
        super().__init__(what)
        self.what = what
        self.then = then


class BadSetting(FleetError):
    """An option or setting that cannot work."""

    code = 3


class PortInUse(FleetError):
    """The fleet's port belongs to another program."""

    code = 4


class MissingModel(FleetError):
    """The folder of the model or tokenizer is not there, or is not a checkpoint."""

    code = 5


class WorkerFailed(FleetError):
    """A worker ended or did not become ready in time."""

    code = 6


class NotUp(FleetError):
    """The verb needs a running fleet."""

    code = 7


class Busy(FleetError):
    """Another verb is changing this fleet now."""

    code = 8


class NginxFailed(FleetError):
    """Nginx is missing, refuses its configuration, or does not answer."""

    code = 9


class RequestFailed(FleetError):
    """A forecast was asked for and did not come."""

    code = 10


class BadCandles(FleetError):
    """The file is not a table of candles."""

    code = 11


class DifferentFleet(FleetError):
    """A fleet with other settings is already up."""

    code = 12


class StillRunning(FleetError):
    """Processes of the fleet did not end."""

    code = 13


class RollHalted(FleetError):
    """A successor did not serve; the old workers do. ``because`` writes the sentences for both runtimes."""

    code = 14

    @classmethod
    def because(cls, reason: str, done: int, of: int, roll: str, look: str) -> Self:
        """``done`` of ``of`` workers are new already; ``roll`` and ``look`` are commands."""
        new = f"{done} of {of} {'is' if done == 1 else 'are'} new already, " if done else "nothing has changed, "
        return cls(f"{reason}\nThe roll has halted: {new}the others serve on as before", f"{look}; correct it, then: {roll}")


class NoEngine(FleetError):
    """There is no container engine, it does not answer, or its Compose is missing or too old."""

    code = 15


class EngineFailed(FleetError):
    """The container engine refuses to do something."""

    code = 16


class BuildFailed(FleetError):
    """The image could not be built; nothing was changed."""

    code = 17


class NoMemory(FleetError):
    """The workers' limits together are more than the machine has."""

    code = 18


class LoadFailed(FleetError):
    """k6 did not make the load it was asked for."""

    code = 21


INTERRUPTED = 130
