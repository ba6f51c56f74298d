"""Write the dashboards' JSON files, or say which of them are not what the modules here make.

    python -m grafana.build          # write grafana/dashboards/*.json
    python -m grafana.build --check  # write nothing; exit 1 when a file differs

Knows: which dashboards there are and where their files lie. Does not know: what is on them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import around, boards, fleet, load, worker

FOLDER: Final = Path(__file__).resolve().parent / "dashboards"
BOARDS: Final = {
    "fleet.json": fleet.board, "worker.json": worker.board, "load.json": load.board, "around.json": around.board,
}  # fmt: skip


def documents() -> dict[str, str]:
    """The text of every dashboard by file name."""
    encoder = JSONEncoder(indent=2, ensure_ascii=False)
    return {name: encoder.encode(boards.document(board())) + "\n" for name, board in BOARDS.items()}


def differing() -> list[str]:
    """Names of the files that are missing, differ from what is made, or are made by nothing."""
    made = documents()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    return sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m grafana.build", description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing, exit 1 when a file differs")
    if options.parse_args().check:
        sys.exit("Run python -m grafana.build: " + ", ".join(differing()) if differing() else 0)
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER.name}/{name}")


if __name__ == "__main__":
    main()
