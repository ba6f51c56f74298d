"""Many small files of an hour that is over become few large ones, while workers go on writing.

For each folder: read the small files, write one that names them as replaced, then remove them. It may be killed between
any two steps and be run again: what was replaced does not count (see ``files``), and is removed first the next time.
Late files of workers that could not write in time are new names, and wait for the next compaction.
Knows: order and sizes. Does not know: columns, schedules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from fleet.log import alone
from fleet.log.files import COMPACTED, REPLACES, File, Files, by_folder, replaced

GRACE: Final = timedelta(minutes=5)
"""After its end an hour's folder still gets the last files: the workers' age of a record, and some patience."""
LARGE: Final = 64 * 2**20
"""Bytes of a file that is left as it is."""
TOGETHER: Final = 128 * 2**20
"""Most bytes of files that become one: they are in memory together."""
GROUP_ROWS: Final = 10_000
"""Rows of a row group: what a reader has to hold."""

Say = Callable[[str], None]


@dataclass
class Done:
    """What one compaction did; bytes are those on the store."""

    folders: int = 0
    files: int = 0
    into: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


def compact(files: Files, now: datetime, say: Say, *, assured: bool = False) -> Done:
    """Compact every folder whose hour is over at ``now``. Raises Busy while another compaction runs, NoLock, NoLog.

    ``assured``: the caller answers for it that no other compaction runs.
    """
    done = Done()
    with nullcontext(lambda: None) if assured else alone.lease(files) as still_mine:
        for folder, found in by_folder(files.everything()).items():
            if closed(folder, now):
                before = done.files
                compact_folder(files, folder, found, done, still_mine)
                done.folders += done.files > before
                if done.files > before:
                    say(f"{folder}: {done.files - before} files")
    return done


def compact_folder(files: Files, folder: str, found: Sequence[File], done: Done, still_mine: Callable[[], None]) -> None:
    """The files ``found`` in one folder. ``still_mine`` raises when somebody else has begun to compact."""
    still_mine()
    gone = replaced(files, found)
    files.remove(gone)
    for group in groups([file for file in found if file not in gone]):
        content, rows = merged(files, group)
        still_mine()
        files.write(f"{folder}/{name_of(group)}", content)
        files.remove(group)
        done.files += len(group)
        done.into += 1
        done.rows += rows
        done.bytes_before += sum(file.size for file in group)
        done.bytes_after += content.size


def closed(folder: str, now: datetime) -> bool:
    """Whether the hour of ``model=…/day=…/hour=…`` is over, with some grace; False for other folders."""
    parts = dict(part.split("=", 1) for part in folder.split("/") if "=" in part)
    try:
        begins = datetime.fromisoformat(f"{parts['day']}T{int(parts['hour']):02d}:00:00").replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return False
    return now >= begins + timedelta(hours=1) + GRACE


def groups(found: Sequence[File]) -> Iterator[list[File]]:
    """Small files that become one: at least two, of at most ``TOGETHER`` bytes."""
    group: list[File] = []
    for file in found:
        if file.size >= LARGE:
            continue
        if group and sum(each.size for each in group) + file.size > TOGETHER:
            if len(group) > 1:
                yield group
            group = []
        group.append(file)
    if len(group) > 1:
        yield group


def name_of(group: Sequence[File]) -> str:
    """The same sources, the same name: who repeats an interrupted compaction overwrites the same file."""
    names = "\n".join(sorted(file.name for file in group))
    return f"{COMPACTED}{hashlib.sha256(names.encode()).hexdigest()[:24]}.parquet"


def merged(files: Files, group: Sequence[File]) -> tuple[pa.Buffer, int]:
    """One Parquet file of all rows of ``group``, by time, and their number."""
    tables = [files.read(file) for file in group]
    # With what they replaced themselves: a worker that was not told of its success may still put such a file again.
    names = {file.name for file in group}.union(*(files.replaced_by(file) for file in group if file.compacted))
    rows = pa.concat_tables(tables, promote_options="permissive").sort_by("answered")
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), REPLACES: json.dumps(sorted(names)).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=GROUP_ROWS)
    return sink.getvalue(), rows.num_rows
