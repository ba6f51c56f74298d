"""The prediction log: every forecast as a row of a Parquet file, at the same cost for the first and the millionth.

Files lie at ``model=…/day=YYYY-MM-DD/hour=HH/`` (UTC, of the answer). Each is written once under a name of its own, never
appended to and never read again, so a record costs what its own bytes cost. What is in memory is lost when the process is
killed: at most the age that the settings allow a record.
Knows: what goes where, when. Does not know: columns, storage, threads.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Final

from pyarrow import Buffer

from app.batcher import Batcher, Bounds, Refused
from app.prediction_log import rows
from app.prediction_log.storage import Storage
from app.records import Record
from app.settings import Settings

MOST_RECORDS: Final = 50_000
BATCH_SHARE: Final = 8
"""A batch is at most this part of the buffer, so that what comes while one is written has room."""

FOLDER: Final = itemgetter(0)

File = tuple[str, Buffer]


class PredictionLog:
    """A sink that keeps what it is offered below ``place``. ``inputs``: with the candles that were sent."""

    def __init__(self, place: str, bounds: Bounds, *, inputs: bool, worker: str) -> None:
        self.batcher = Batcher("log", self._write, bounds)
        self._storage = Storage(place)
        self._inputs = inputs
        self._writer = f"{plain(worker)}-{secrets.token_hex(4)}"  # two processes can have one worker's name
        self._count = 0
        self._batch: Sequence[rows.Taken] = ()
        self._files: list[File] = []
        rows.parquet(rows.SCHEMA.empty_table())  # what Arrow loads when it is first used is loaded before there are requests

    @classmethod
    def of(cls, place: str, settings: Settings) -> PredictionLog:
        """As the settings want it."""
        room = settings.prediction_log_buffer
        bounds = Bounds(MOST_RECORDS, room, settings.prediction_log_batch, room // BATCH_SHARE, settings.prediction_log_age)
        return cls(place, bounds, inputs=settings.prediction_log_inputs, worker=settings.worker_name)

    def offer(self, record: Record) -> None:
        """See ``Sink``."""
        taken = rows.take(record, self._inputs)
        self.batcher.put(taken, taken.bytes)

    def close(self, timeout_s: float) -> None:
        """See ``Sink``."""
        self.batcher.close(timeout_s)

    def _write(self, batch: list[rows.Taken]) -> None:
        """Write a batch; the same batch again goes on with the files that are left."""
        if batch is not self._batch:
            try:
                self._files = list(self._encode(batch))
            except Exception as error:  # a row that cannot be made today cannot be made tomorrow
                raise Refused(f"no table can be made of them: {error!r}") from error
            self._batch = batch
        while self._files:
            self._storage.put(*self._files[0])
            del self._files[0]
        self._batch = ()

    def _encode(self, batch: Sequence[rows.Taken]) -> Iterator[File]:
        """A file for each folder that the batch belongs to: mostly one, two when the hour changes."""
        placed = sorted(((folder(taken.record["model_version"], taken.record["answered"]), taken) for taken in batch), key=FOLDER)
        for where, group in groupby(placed, key=FOLDER):
            self._count += 1
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{self._writer}-{self._count:06d}.parquet"
            yield f"{where}/{name}", rows.parquet(rows.table([taken for _, taken in group]))


def folder(model_version: str, answered: float) -> str:
    """Where a forecast belongs. The exact version is in its row; the folder has it in letters that every store takes."""
    return f"model={plain(model_version)}/{datetime.fromtimestamp(answered, UTC):day=%Y-%m-%d/hour=%H}"


def plain(name: str) -> str:
    """``name`` with a hyphen for everything but letters, digits, dot, hyphen and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)
