"""What a record costs the prediction log, when it is empty and when it holds a million.

    python -m benchmarks.prediction_log [--records 1000000] [--json FILE]

One process offers all the records to one log in a folder. On the way, at each power of ten, the next records are timed: the
offer on the offering thread, and processor time of the whole process for each, writing included. Beside it, interleaved, the
same for a log that is one file, fetched and rewritten for each record (up to `--naive` records). What the log costs a request
is benchmarks/around.py's. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import obstore
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import LocalStore

from app.api import answer
from app.api.decode import decode
from app.api.prepare import prepare_forecast
from app.api.schema import PredictRequest
from app.prediction_log import rows
from app.prediction_log.sink import PredictionLog
from app.records import Record
from app.settings import Settings
from app.work import Outcome
from benchmarks import machine
from benchmarks.http import BOUNDS, request_body

WINDOW: Final = 2000
"""Records that are timed at each size: whole batches."""
BATCH: Final = 500
PACE: Final = 200
"""Records after which the offering thread lets the writer catch up, as the engine's steps would."""
NAIVE_WINDOW: Final = 5
STEPS: Final = 12


def sample(steps: int) -> Record:
    """A forecast of ``steps`` candles after 400."""
    body = json.loads(request_body()) | {"overrides": {"pred_len": steps, "seed": 7}}
    body.pop("prediction_timestamps", None)
    prepared = prepare_forecast(decode(json.dumps(body).encode(), PredictRequest), BOUNDS)
    paths = np.random.default_rng(7).standard_normal((1, steps, 6)).astype(np.float32)
    stages = {"cache": 1e-4, "queue": 1e-3, "encode": 1e-3, "prefill": 1e-2, "decode": 0.1, "detokenise": 1e-3}
    result = answer.forecast(prepared, Outcome(paths, None, stages, False))
    versions = ("demo@main+0123456789ab", "tokenizer@main+ab")
    return Record("request", time.time(), "single", "worker", *versions, "miss", stages, prepared, result)


class Growing:
    """The service's own log, and how many records it holds."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._log = PredictionLog.of(str(folder), Settings(prediction_log_batch=BATCH, prediction_log_age=0.2))
        self._record = record
        self.count = 0

    def offer(self, count: int) -> list[float]:
        """Seconds of each call on this thread."""
        laps = []
        for _ in range(count):
            told = dataclasses.replace(self._record, answered=time.time())
            began = time.perf_counter()
            self._log.offer(told)
            laps.append(time.perf_counter() - began)
            self.count += 1
            if self.count % PACE == 0:
                self.catch_up(4 * WINDOW)
        return laps

    def catch_up(self, most: int) -> None:
        """Wait until at most ``most`` records are held."""
        while self._log.batcher.held > most:
            time.sleep(0.002)

    def window(self) -> dict[str, float]:
        """How many records there are; for one of the next, microseconds of the offer (p50, p99) and of the processor in
        all; the memory of the process, with everything that benchmarks import (MB)."""
        held, before = self.count, time.process_time()
        laps = self.offer(WINDOW)
        self.catch_up(0)
        processor = time.process_time() - before
        memory = psutil.Process().memory_info().rss / 1e6
        p50, p99 = 1e6 * np.quantile(laps, [0.5, 0.99])
        return {"records": held, "offer": p50, "offer p99": p99, "processor": 1e6 * processor / WINDOW, "memory": memory}

    def close(self) -> None:
        """Nothing is left by now."""
        self._log.close(10)


class Rewritten:
    """The contrast: one Parquet file, fetched and rewritten with one row more for each record."""

    def __init__(self, folder: Path, record: Record) -> None:
        folder.mkdir()
        self._store = LocalStore(folder)
        self._row = rows.table([rows.take(record, False)])

    def window(self, held: int) -> float:
        """Microseconds of processor for one record when the file holds ``held``."""
        self._put(pa.concat_tables([self._row] * max(held, 1)))
        before = time.process_time()
        for _ in range(NAIVE_WINDOW):
            there = pq.read_table(pa.BufferReader(bytes(obstore.get(self._store, "log.parquet").bytes())))
            self._put(pa.concat_tables([there, self._row]))
        return 1e6 * (time.process_time() - before) / NAIVE_WINDOW

    def _put(self, table: pa.Table) -> None:
        obstore.put(self._store, "log.parquet", memoryview(rows.parquet(table)).cast("B"), use_multipart=False)


def growth(records: int, naive: int) -> list[dict[str, float]]:
    """A row for each power of ten up to ``records``."""
    found: list[dict[str, float]] = []
    told = sample(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        first = Growing(Path(folder) / "first", told)
        first.window()  # imports and first calls are not the records'
        first.close()
        ours, theirs = Growing(Path(folder) / "log", told), Rewritten(Path(folder) / "naive", told)
        for held in [10**power for power in range(int(math.log10(records)) + 1)]:
            ours.offer(max(0, held - ours.count))
            ours.catch_up(0)
            row = ours.window()
            if held <= naive:
                row |= {"file": held, "rewritten": theirs.window(held)}
            found.append(row)
            print("  ".join(f"{name} {value:,.1f}" for name, value in row.items()), flush=True)
        ours.close()
    return found


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10**6)
    parser.add_argument("--naive", type=int, default=10**4, help="most records of the file that is rewritten")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(f"{machine.name()}: microseconds for one record of {STEPS} steps, log of so many records")
    document = {"machine": machine.name(), "steps": STEPS, "growth": growth(options.records, options.naive)}
    line = json.dumps(document)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
