"""Log lines on their way out of the process: from the pool `io`, so that a reader that stalls stops the log and nothing else.

A container's log driver that cannot write lets its pipe fill up, and a write to a full pipe does not return: on the event
loop that would end all service. Lines wait here in memory instead, at most ``LONGEST``; more are dropped and counted.
Knows: when a line is written, and by whom. Does not know: what lines look like. Where a process has no pools (gunicorn's
own, or before and after the application's life), whoever logs a line writes it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Final, TextIO

from app import metrics
from app.errors import KronosError
from app.pools import Pools, in_use
from app.task import name_of

LONGEST: Final = 5000
GATHER_S: Final = 0.02
"""A thread that is woken for a line waits so long for more."""
LAST_WORDS_S: Final = 1.0
"""How long a critical line holds up who logs it: the process is about to end, and with it what waits here."""


class Outlet(logging.Handler):
    """Writes to the file of ``stream``, past its buffer, whose lock a stalled write would hold for ever."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[logging.LogRecord] = deque()
        self._guard = threading.RLock()  # a signal handler may log, too
        self._writing = False
        self._written = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "context", {}).get("task") == name_of(self._gather):
            return  # a verbose pool tells of each task: of this one, a line would make a line
        if len(self._lines) >= LONGEST:
            metrics.LOG_DROPPED.inc()
            return
        self._lines.append(record)
        self._written.clear()
        if pools := in_use():
            self._wake(pools)
            if record.levelno >= logging.CRITICAL:
                self._written.wait(LAST_WORDS_S)
        else:
            self.flush()

    def flush(self) -> None:
        """Write what waits, unless a thread is at it: that one may have stalled."""
        if self._begin():
            self._write_all()

    def _wake(self, pools: Pools) -> None:
        if self._begin():
            try:
                pools["io"].submit(self._gather)
            except KronosError:  # the pool is full, or closes: the next line tries again
                self._writing = False

    def _begin(self) -> bool:
        with self._guard:
            free, self._writing = not self._writing, True
        return free

    def _gather(self) -> None:
        time.sleep(GATHER_S)
        self._write_all()

    def _write_all(self) -> None:
        while True:
            self._write([self._lines.popleft() for _ in range(len(self._lines))])
            with self._guard:
                if not self._lines:
                    self._writing = False
                    self._written.set()
                    return

    def _write(self, records: list[logging.LogRecord]) -> None:
        data = "".join(self.format(record) + "\n" for record in records).encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._stream.fileno(), data) :]
            except OSError:  # nobody reads any more
                return
