"""``fleet log compact``: fewer files, the same rows, for every reader at every moment, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fleet.__main__ import main
from fleet.log import compact as compaction
from fleet.log.files import File, Files, live
from fleet.log.query import ask
from tests.logged import record
from tests.test_fleet_log import TEN, lay, refused

LATER = datetime.fromtimestamp(TEN, UTC) + timedelta(hours=2)
HOUR = "model=demo-main-0123456789ab/day=2026-11-21/hour=10"


def quiet(_: str) -> None:
    """Nobody is told."""


def run(place: Path, now: datetime = LATER) -> compaction.Done:
    return compaction.compact(Files(str(place)), now, quiet)


def laid(place: Path, count: int = 4, each: int = 3, hour: int = 0) -> list[str]:
    """``count`` files of ``each`` records in one folder; the records' ids."""
    ids = []
    for number in range(count):
        told = [record(answered=TEN + 3600 * hour + number + second / 10, quantiles=[0.5]) for second in range(each)]
        ids += [one.record_id for one in told]
        lay(place, told, f"20261121T10000{number}.000000Z-w-0000000{hour}-00000{number}.parquet")
    return sorted(ids)


def ids_of(place: Path) -> list[str]:
    """What a reader sees."""
    found = ask(Files(str(place)), "SELECT record_id FROM predictions ORDER BY record_id", {})
    ids: list[str] = found["record_id"].to_pylist()
    return ids


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*.parquet"))


def test_small_files_of_closed_hours_become_one(tmp_path: Path) -> None:
    """The hour that is not over is left alone; rows are the same, in the order of time; twice changes nothing."""
    ids = sorted(laid(tmp_path) + laid(tmp_path, hour=2))
    before = ask(Files(str(tmp_path)), "FROM predictions ORDER BY record_id", {}).to_pylist()
    done = run(tmp_path)
    assert (done.folders, done.files, done.into, done.rows) == (1, 4, 1, 12)
    assert done.bytes_before > done.bytes_after > 0
    assert len(names(tmp_path)) == 1 + 4 and ids_of(tmp_path) == ids
    assert ask(Files(str(tmp_path)), "FROM predictions ORDER BY record_id", {}).to_pylist() == before
    (path,) = (tmp_path / HOUR).glob("*.parquet")
    moments = pq.ParquetFile(path).read()["answered"].to_pylist()
    assert moments == sorted(moments)
    listing = names(tmp_path)
    assert run(tmp_path) == compaction.Done() and names(tmp_path) == listing


def test_late_files_are_merged_the_next_time(tmp_path: Path) -> None:
    """What a worker could only write after the compaction counts at once, and is compacted with the rest."""
    ids = laid(tmp_path)
    run(tmp_path)
    late = [record(answered=TEN + 50)]
    lay(tmp_path, late, "20261121T130000.000000Z-w-00000000-000099.parquet")
    assert ids_of(tmp_path) == sorted([*ids, late[0].record_id])
    assert run(tmp_path).files == 2 and len(names(tmp_path)) == 1
    assert ids_of(tmp_path) == sorted([*ids, late[0].record_id])


def test_a_file_that_is_put_again_does_not_count_again(tmp_path: Path) -> None:
    """A worker that was not told of its success repeats the same file under the same name, perhaps after compactions."""
    ids = laid(tmp_path)
    first = next((tmp_path / HOUR).glob("*.parquet"))
    content = first.read_bytes()
    run(tmp_path)
    first.write_bytes(content)
    assert ids_of(tmp_path) == ids
    lay(tmp_path, [record(answered=TEN)], "20261121T130000.000000Z-w-00000000-000099.parquet")
    run(tmp_path)
    run(tmp_path)
    first.write_bytes(content)
    assert len(ids_of(tmp_path)) == len(ids) + 1
    run(tmp_path)
    assert len(names(tmp_path)) == 1


def test_large_files_are_left_and_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the limit or more is rewritten, and what is in memory at once is bounded."""
    monkeypatch.setattr(compaction, "LARGE", 10)
    monkeypatch.setattr(compaction, "TOGETHER", 15)

    def sizes(*given: int) -> list[list[int]]:
        found = compaction.groups([File(f"f/{number}", size) for number, size in enumerate(given)])
        return [[file.size for file in group] for group in found]

    assert sizes(5, 5, 5, 5) == [[5, 5, 5]]
    assert sizes(5, 10, 5, 99) == [[5, 5]]
    assert sizes(9, 9, 9) == [] == sizes() == sizes(4)


def test_only_hours_that_are_over() -> None:
    """With minutes of grace for the workers' last files; folders that are not hours are nobody's business."""
    over = datetime(2026, 11, 21, 11, 5, tzinfo=UTC)
    assert compaction.closed(HOUR, over)
    assert not compaction.closed(HOUR, over - timedelta(seconds=1))
    for folder in ("", "elsewhere", "model=m/day=x/hour=10", "model=m/day=2026-11-21", "model=m/day=2026-11-21/hour=99"):
        assert not compaction.closed(folder, over)


KILLED = """
import os, signal, sys
import obstore
from tests.test_fleet_log_compact import Path, run
left = int(sys.argv[2])
def deadly(act):
    def first_count(*args, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return act(*args, **options)
    return first_count
obstore.put, obstore.delete = deadly(obstore.put), deadly(obstore.delete)
run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", range(6))
def test_killed_at_any_step(step: int, tmp_path: Path) -> None:
    """Before the put, after it, after each removal: readers see every row once, and the next run ends the work."""
    ids = laid(tmp_path)
    killed = subprocess.run([sys.executable, "-W", "error", "-c", KILLED, str(tmp_path), str(step)], check=False)
    assert killed.returncode == (-signal.SIGKILL if step < 5 else 0), "1 put and 4 removals"
    assert len(names(tmp_path)) == (4, 5, 4, 3, 2, 1)[step]
    assert ids_of(tmp_path) == ids
    run(tmp_path)
    assert len(names(tmp_path)) == 1 and ids_of(tmp_path) == ids
    assert run(tmp_path) == compaction.Done()


def test_control_a_reader_that_takes_every_file_sees_rows_twice(tmp_path: Path) -> None:
    """Negative control: between put and removal the rows are in two files; only the names in the metadata tell."""
    laid(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "1"], check=False)
    files = Files(str(tmp_path))
    assert sum(files.read(file).num_rows for file in files.everything()) == 24
    assert sum(files.read(file).num_rows for file in live(files)) == 12


def test_what_a_killed_write_left_is_no_file(tmp_path: Path) -> None:
    """A half-written file has another name until it is whole, and an empty one counts as none."""
    ids = laid(tmp_path)
    whole = next((tmp_path / HOUR).glob("*.parquet"))
    (tmp_path / HOUR / f"{whole.name}x#1").write_bytes(whole.read_bytes()[:100])
    (tmp_path / HOUR / "20261121T235959.000000Z-w-00000000-000001.parquet").touch()
    assert ids_of(tmp_path) == ids
    run(tmp_path)
    assert ids_of(tmp_path) == ids


def test_while_others_write_and_read(tmp_path: Path) -> None:
    """Nobody misses a row that was there before he looked, or sees one twice."""
    written: list[str] = sorted(laid(tmp_path))
    stop = threading.Event()
    trouble: list[Any] = []

    def write() -> None:
        for number in range(40):
            one = record(answered=TEN + number)
            lay(tmp_path / "new", [one], f"20261121T12{number:04d}.000000Z-w-11111111-000001.parquet")
            (path,) = (tmp_path / "new").rglob("*.parquet")
            path.rename(tmp_path / HOUR / path.name)
            time.sleep(0.02)
            written.append(one.record_id)
        stop.set()

    def look() -> None:
        while not stop.is_set():
            sure = set(written)
            found = ids_of(tmp_path)
            if len(found) != len(set(found)) or not sure <= set(found):
                trouble.append((len(found), len(set(found)), len(sure)))

    threads = [threading.Thread(target=role) for role in (write, look)]
    for thread in threads:
        thread.start()
    while not stop.wait(0.1):
        run(tmp_path)
    for thread in threads:
        thread.join()
    run(tmp_path)
    assert trouble == [] and ids_of(tmp_path) == sorted(written)


def test_one_compaction_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused while the first runs, and welcome when it has ended, or died."""
    laid(tmp_path)
    script = (
        "from fleet.log.alone import lease; from fleet.log.files import Files\n"
        f"with lease(Files({str(tmp_path)!r})): print(flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout and holder.stdout.readline()
    assert "another command is compacting" in refused(capsys, "compact", "--at", str(tmp_path))
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert main(["log", "compact", "--at", str(tmp_path)], {}) == 0
    assert f"{HOUR}: 4 files\nCompacted 4 files into 1 in 1 folders: 12 rows" in capsys.readouterr().out
    assert main(["log", "compact"], {"KRONOS_PREDICTION_LOG": str(tmp_path)}) == 0
    assert "Nothing to compact" in capsys.readouterr().out


def test_different_columns_are_kept(tmp_path: Path) -> None:
    """Files of two versions of the schema become one with the columns of both."""
    import pyarrow as pa

    laid(tmp_path, 2)
    files = Files(str(tmp_path))
    first = files.everything()[0]
    pq.write_table(files.read(first).append_column("region", pa.array(["eu"] * 3)), tmp_path / first.path)
    assert run(tmp_path).rows == 6
    found = ask(files, "SELECT region, count(*) AS n FROM predictions GROUP BY ALL", {}).to_pylist()
    assert {row["region"]: row["n"] for row in found} == {"eu": 3, None: 3}
