"""Where a local fleet keeps its jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from fleet.local import plan
from fleet.state import Folders
from tests.fleet.live import ROOT

OPTIONS = argparse.Namespace(
    workers=2, port=None, worker_port=None, host=None, model=None, tokenizer=None, app=None, nginx=None, gunicorn_conf=None
)


@pytest.mark.parametrize("where", [None, "redis://127.0.0.1:6379"])
def test_the_workers_of_a_fleet_share_one_store(tmp_path: Path, where: str | None) -> None:
    """`make up` keeps jobs in the fleet's folder, also after a roll, unless it is told where."""
    folders = Folders(ROOT, tmp_path / "run with blanks")
    env = {"KRONOS_JOBS_URL": where} if where else {}
    first = plan.make(OPTIONS, env, folders)
    assert first.settings["KRONOS_JOBS_URL"] == (where or f"sqlite:{folders.jobs}")
    assert plan.renew(first, OPTIONS, env, folders).settings == first.settings
