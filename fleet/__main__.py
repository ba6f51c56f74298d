"""``python -m fleet``: options in, exit code out.

Knows: how errors are shown, which verbs need the lock. Does not know: what the verbs do.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import FrameType

from rich.console import Console

from fleet import runtimes
from fleet.errors import INTERRUPTED, FleetError
from fleet.log import cli as predictions
from fleet.options import CHANGING, parser, runtime_of
from fleet.state import locked
from fleet.tune import cli as tuning
from fleet.verbs import VERBS


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Run one verb, return the exit code."""
    options = parser().parse_args(argv)
    console, errors = Console(), Console(stderr=True)
    rehearsing = getattr(options, "dry_run", False)
    try:
        if options.verb == "log":
            predictions.run(options, env)
            return 0
        if options.verb in tuning.VERBS:
            tuning.run(options, env)
            return 0
        desk, runtime = runtimes.make(runtime_of(options, env), runtimes.place(options), env, console, rehearsing)
        changing = options.verb in CHANGING and not rehearsing
        with locked(desk.folders, options.verb) if changing else nullcontext():
            VERBS[options.verb](desk, runtime, options)
    except FleetError as error:
        errors.print(error.what, style="red", markup=False, highlight=False, soft_wrap=True)
        errors.print(f"Next: {error.then}", markup=False, highlight=False, soft_wrap=True)
        return error.code
    except KeyboardInterrupt:
        errors.print("Interrupted")
        return INTERRUPTED
    return 0


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and a closed terminal end a verb as Ctrl-C does: with its cleaning up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)
    sys.exit(main())
