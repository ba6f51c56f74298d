"""Where the files of the prediction log go: a folder, or a bucket of S3-compatible storage.

A file is put whole or not at all, under a name that no other has, and never touched again. The same bytes under the same
name may be put twice: a put that failed may have arrived.
Knows: places, obstore. Does not know: what is in the files.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Final

import obstore
from obstore.store import LocalStore, S3Store
from pyarrow import Buffer

CONNECT_S: Final = 5.0
PUT_S: Final = 20.0
"""Longest time for one file; the next try is the batcher's business."""
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""Where the environment names a server that is not Amazon's, the most particular name first."""

Store = LocalStore | S3Store


class Storage:
    """The files below ``place``: a folder, which is made when it is missing, or ``s3://bucket/prefix``.

    S3: credentials, region and endpoint are the usual AWS_* variables of the environment.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._store: Store | None = None

    def put(self, name: str, content: Buffer) -> None:
        """Write one file. Raises whatever the place has to say."""
        if self._store is None:  # not at the start: a disk that is missing then may be there later
            self._store = open_store(self._place)
        obstore.put(self._store, name, memoryview(content).cast("B"), use_multipart=False)


def open_store(place: str) -> Store:
    """Raises OSError or obstore's errors when the folder cannot be made or the address is none."""
    if "://" not in place:
        folder = Path(place).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    return S3Store.from_url(
        place,
        config={"endpoint": endpoint} if endpoint else {},
        client_options={
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=PUT_S),
            "allow_http": (endpoint or "").startswith("http://"),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=PUT_S)},
    )
