"""The files of a prediction log, in a folder or in S3-compatible storage, and which of them count.

A compacted file names the files it replaces in its own metadata. From the moment it is there they no longer count, whether
they have been removed yet or not: so no reader of this module sees a row twice, or misses one, at any moment of a compaction.
Knows: places, names, listings, Parquet metadata. Does not know: columns, SQL, when to compact.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import LocalStore, S3Store
from pyarrow import fs

from fleet.errors import BadSetting, FleetError

VARIABLE: Final = "KRONOS_PREDICTION_LOG"
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
COMPACTED: Final = "compacted-"
REPLACES: Final = b"kronos.replaces"
PATIENCE_S: Final = 60.0

Store = LocalStore | S3Store


class NoLog(FleetError):
    """There is no prediction log where one was looked for."""

    code = 22


@dataclass(frozen=True)
class File:
    """``path`` is relative to the log; ``size`` in bytes."""

    path: str
    size: int

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def compacted(self) -> bool:
        return self.name.startswith(COMPACTED)


class Files:
    """The files below ``place``: a folder, or ``s3://bucket/prefix`` with the AWS_* variables of ``env``."""

    def __init__(self, place: str, env: Mapping[str, str] = os.environ) -> None:
        self.place = place
        self.local = None if "://" in place else Path(place).absolute()
        self._endpoint = next((env[name] for name in ENDPOINTS if env.get(name)), None)
        if self.local and not self.local.is_dir():
            raise NoLog(f"there is no folder {place}", f"give the folder or s3:// address that {VARIABLE} of the workers has")
        if self.local is None and not place.startswith("s3://"):
            raise BadSetting(f"{place} is neither a folder nor s3://BUCKET/PREFIX", "python -m fleet log query --at FOLDER …")

    @cached_property
    def store(self) -> Store:
        """Reads and writes, below ``place``."""
        return LocalStore(self.local) if self.local else S3Store.from_url(self.place, **self._s3)

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """The same for Arrow, which wants ``full`` paths."""
        if self.local:
            return fs.LocalFileSystem()
        from obstore.fsspec import FsspecStore

        return fs.PyFileSystem(fs.FSSpecHandler(FsspecStore("s3", **self._s3)))

    @property
    def base(self) -> str:
        """What ``full`` paths begin with."""
        return str(self.local) if self.local else self.place.removeprefix("s3://").rstrip("/")

    def full(self, file: File) -> str:
        """The path of a file for ``filesystem``."""
        return f"{self.base}/{file.path}"

    def everything(self) -> list[File]:
        """All Parquet files with something in them, by path. Raises NoLog when the place cannot be read."""
        try:
            found = obstore.list(self.store).collect()
        except Exception as error:  # obstore has a class for each way a bucket can be away
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise NoLog(f"{self.place} cannot be read: {reason}", "look at the address and the AWS_* variables") from error
        files = [File(each["path"], each["size"]) for each in found]
        return sorted((each for each in files if each.path.endswith(".parquet") and each.size), key=lambda each: each.path)

    def replaced_by(self, file: File) -> frozenset[str]:
        """The names that a compacted file stands for."""
        metadata = pq.read_metadata(self.full(file), filesystem=self.filesystem).metadata or {}
        return frozenset(json.loads(metadata.get(REPLACES, b"[]")))

    def read(self, file: File) -> pa.Table:
        """All rows of one file, as they were written."""
        return pq.read_table(self.full(file), filesystem=self.filesystem, partitioning=None)

    def write(self, path: str, content: pa.Buffer) -> None:
        """Put a file, whole or not at all."""
        obstore.put(self.store, path, memoryview(content).cast("B"))

    def remove(self, files: Iterable[File]) -> None:
        """Remove files; those that are gone are fine."""
        for file in files:
            try:
                obstore.delete(self.store, file.path)
            except FileNotFoundError:
                continue

    @property
    def _s3(self) -> dict[str, Any]:
        timeouts = {"timeout": timedelta(seconds=PATIENCE_S), "connect_timeout": timedelta(seconds=5)}
        return {
            "config": {"endpoint": self._endpoint} if self._endpoint else {},
            "client_options": {**timeouts, "allow_http": (self._endpoint or "").startswith("http://")},
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=PATIENCE_S)},
        }


def by_folder(files: Iterable[File]) -> dict[str, list[File]]:
    """Files of each hour of each model."""
    found: dict[str, list[File]] = defaultdict(list)
    for file in files:
        found[file.folder].append(file)
    return dict(found)


def replaced(files: Files, folder: Sequence[File]) -> list[File]:
    """Those of one folder's files that a compacted one stands for. Metadata are read only where there are others too."""
    if len(folder) < 2:
        return []
    names = frozenset[str]().union(*(files.replaced_by(file) for file in folder if file.compacted))
    return [file for file in folder if file.name in names]


def listed(files: Files) -> list[File]:
    """A listing that no removal fell into. One that did could lack what was removed, and what replaced it as well."""
    before = files.everything()
    while not set(before) <= set(after := files.everything()):
        before = after
    return after


def live(files: Files) -> list[File]:
    """The files whose rows together are the log. Raises FileNotFoundError when one is removed meanwhile: ask again."""
    found = []
    for folder in by_folder(listed(files)).values():
        gone = set(replaced(files, folder))
        found += [file for file in folder if file not in gone]
    return found
