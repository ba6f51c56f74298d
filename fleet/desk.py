"""What every verb has at hand: the machine, the folders, the screen, the environment.

Knows: how to speak to the operator, and when Ctrl-C has to wait. Does not know: verbs, processes, containers.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress
from rich.console import Console

from fleet.host import Host
from fleet.state import Folders


@dataclass
class Desk:
    """``env`` is the operator's environment: what is started gets its settings from it."""

    host: Host
    folders: Folders
    console: Console
    env: Mapping[str, str]

    def say(self, text: str, style: str = "") -> None:
        """One line for the operator, as it is: brackets in a log line are no markup."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def bar(self) -> progress.Progress:
        """A bar that counts ready workers and seconds, gone when it is done."""
        columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
        counts = (progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
        silent = not self.console.is_terminal
        return progress.Progress(*columns, *counts, console=self.console, transient=True, disable=silent)


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal take effect at the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """While cleaning up after Ctrl-C, SIGTERM or a closed terminal, another of them changes nothing."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
