"""One compaction of a log at a time: two at once could put the same rows into two files.

A folder has a lock that the kernel frees however its holder ends. A bucket has an object that says who compacts, made and
renewed only on condition of what was there; who dies leaves it behind, and after ``LEASE`` it is taken over.
Knows: locks. Does not know: what is done under them.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from fleet.errors import Busy, FleetError
from fleet.log.files import Files

NAME: Final = ".compaction"
LEASE: Final = timedelta(minutes=5)
THEN: Final = "wait until it is done"

StillMine = Callable[[], None]


class NoLock(FleetError):
    """The storage cannot say whether somebody else compacts."""

    code = 24


@contextmanager
def lease(files: Files) -> Iterator[StillMine]:
    """Compact alone within the block; call what it gives before anything that cannot be undone. Raises Busy."""
    if files.local:
        with (files.local / NAME).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"another command is compacting {files.place}", THEN) from error
            yield lambda: None
    else:
        held = _Lease(files)
        try:
            yield held.renew
        finally:
            held.end()


class _Lease:
    """An object in the bucket, ours from the moment it could be put."""

    def __init__(self, files: Files) -> None:
        self._files = files
        try:
            self._tag = self._put("create")
        except AlreadyExistsError:
            there = obstore.head(files.store, NAME)
            until = there["last_modified"] + LEASE
            if datetime.now(UTC) < until:
                who = bytes(obstore.get(files.store, NAME).bytes()).decode(errors="replace")
                raise Busy(f"{who} is compacting {files.place}, or died of it", f"try again at {until:%H:%M:%S} UTC") from None
            self._tag = self._replace(there)
        self._check_conditions()

    def renew(self) -> None:
        """Begin the lease anew. Raises Busy when it was taken over meanwhile."""
        self._tag = self._replace(self._tag)

    def end(self) -> None:
        """Give it back, if it is ours."""
        try:
            self.renew()
        except Busy:
            return
        obstore.delete(self._files.store, NAME)

    def _check_conditions(self) -> None:
        """Some servers take no notice of conditions. Raises NoLock."""
        try:
            self._put("create")
        except AlreadyExistsError:
            return
        obstore.delete(self._files.store, NAME)
        what = f"{self._files.place}: this storage takes no notice of conditions, so two compactions would not see each other"
        raise NoLock(what, "make sure that no other runs, then: python -m fleet log compact --alone")

    def _replace(self, tag: Mapping[str, Any]) -> Any:
        """Put it on condition that what was put or found as ``tag`` is still there."""
        try:
            return self._put({name: tag[name] for name in ("e_tag", "version") if tag[name] is not None})
        except (PreconditionError, FileNotFoundError) as error:
            raise Busy(f"another command has begun to compact {self._files.place}", THEN) from error

    def _put(self, mode: Any) -> Any:
        who = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat()})
        return obstore.put(self._files.store, NAME, who.encode(), mode=mode)
