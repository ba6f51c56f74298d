"""SQL over a prediction log, by DuckDB: it sees the log's rows, the truth, and nothing else of the machine.

Arrow reads the files, DuckDB gets tables: it may open no file, load no extension and change none of its settings.
Knows: connections, views, failures. Does not know: what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from fleet.errors import FleetError
from fleet.log.files import File, Files, NoLog, live
from fleet.log.questions import VIEWS

FOLDERS: Final = ds.partitioning(
    pa.schema([("model", pa.string()), ("day", pa.date32()), ("hour", pa.int8())]), flavor="hive"
)  # fmt: skip
LOCKS: Final = (
    "SET TimeZone = 'UTC'",
    "SET temp_directory = ''",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
TRIES: Final = 10
"""A compaction may remove a file between the listing and the reading; then the new listing has what replaced it."""


class BadQuery(FleetError):
    """The database does not take the SQL."""

    code = 23


def ask(files: Files, sql: str, values: Mapping[str, Any], truth: pa.Table | None = None) -> pa.Table:
    """The answer to ``sql``, in which $name is one of ``values``. Raises NoLog, BadQuery."""
    for left in reversed(range(TRIES)):
        try:
            found = live(files)
            if not found:
                raise NoLog(f"{files.place} has no predictions yet", "set KRONOS_PREDICTION_LOG for the workers, ask for some")
            return _ask(connect(files, found, truth), sql, values)
        except FileNotFoundError as error:
            if not left:
                raise NoLog(f"files vanish from {files.place}: {error}", "try again when nothing removes them") from error
    raise AssertionError("one of the tries returns or raises")


def connect(files: Files, found: list[File], truth: pa.Table | None = None) -> duckdb.DuckDBPyConnection:
    """A database with the views ``predictions``, those of ``VIEWS``, and the table ``truth`` if there is one."""
    connection = duckdb.connect(config={"python_enable_replacements": False})
    connection.register("predictions", dataset(files, found))
    for name, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    if truth is not None:
        connection.register("truth", truth)
    for lock in LOCKS:
        connection.execute(lock)
    return connection


def dataset(files: Files, found: list[File]) -> ds.Dataset:
    """All rows, with the columns of the newest file; model, day and hour are of the folders."""
    newest = max(found, key=lambda file: (file.folder.rpartition("/day=")[2], file.name))
    read = {"filesystem": files.filesystem, "partitioning": FOLDERS, "partition_base_dir": files.base, "format": "parquet"}
    schema = ds.dataset([files.full(newest)], **read).schema
    return ds.dataset([files.full(file) for file in found], schema=schema, **read)


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any]) -> pa.Table:
    try:
        answer = connection.sql(sql, params=dict(values) or None)
        if answer is None:
            raise BadQuery("this SQL asks for nothing", "begin with SELECT, FROM, DESCRIBE or SUMMARIZE")
        return answer.to_arrow_table()
    except duckdb.PermissionException as error:
        raise BadQuery(first_lines(error), "ask about the views predictions, steps, bands and truth only") from error
    except duckdb.Error as error:
        if "No such file or directory" in str(error) or "FileNotFoundError" in str(error):
            raise FileNotFoundError(first_lines(error)) from error
        raise BadQuery(first_lines(error), 'for columns: python -m fleet log query "DESCRIBE predictions"') from error
    finally:
        connection.close()


def first_lines(error: Exception) -> str:
    """A database's complaint, with the place in the SQL."""
    return "\n".join(str(error).strip().splitlines()[:6])
