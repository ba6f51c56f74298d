"""The logs of the workers and of nginx: the line that says why, the last lines, and following them.

Knows: log files and their JSON lines. Does not know: processes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

SEVERE = {"error", "critical", "emerg", "alert", "crit"}
PLAIN = re.compile(r"\[[^\]]+\] \[\d+\] \[(?P<level>[A-Z]+)\] (?P<message>.*)")
"""How gunicorn writes before the worker's own logging is set up."""
DULL = re.compile(
    r"(Reason: )?(Worker failed to boot|Application startup failed|Worker exiting|Shutting down|Handling signal)"
    r"|Worker \(pid:\d+\) exited"
)
"""What supervisor and server say after the reason, and which hides it."""
FOLLOW_EVERY_S = 0.25


def last_useful_line(text: str) -> str:
    """The sentence that most likely says why a program ended: its last error, else its last words."""
    readings = [_read(line) for line in text.splitlines() if line.strip()]
    telling = [(sentence, severe) for sentence, severe in readings if not DULL.match(sentence)]
    severe = [sentence for sentence, is_severe in telling if is_severe]
    return (severe or [sentence for sentence, _ in telling] or ["it said nothing"])[-1]


def _read(line: str) -> tuple[str, bool]:
    """The sentence of a log line, and whether it is severe: the end of a traceback is, a JSON line says so."""
    line = line.strip()
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and "message" in entry:
        sentence = _last_line(str(entry["message"]))
        if exception := entry.get("exception"):
            sentence += f": {_last_line(str(exception))}"
        return sentence, entry.get("level") in SEVERE
    if plain := PLAIN.match(line):
        return plain["message"], plain["level"].lower() in SEVERE
    return line, bool(re.match(r"([A-Za-z_.]*(Error|Exception)|SystemExit)\b|nginx: \[(emerg|alert|crit)\]", line))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; [] when there is none."""
    try:
        return path.read_text(errors="replace").splitlines()[-lines:] if lines else []
    except FileNotFoundError:
        return []


def follow(logs: Mapping[str, Path], sleep: Callable[[float], None] = time.sleep) -> Iterator[tuple[str, str]]:
    """(name, line) of each new whole line, for ever. A log that begins anew is read from its beginning."""
    places = {name: path.stat().st_size if path.exists() else 0 for name, path in logs.items()}
    parts = dict.fromkeys(logs, "")
    while True:
        for name, path in logs.items():
            size = path.stat().st_size if path.exists() else 0
            if size < places[name]:
                places[name], parts[name] = 0, ""
            if size > places[name]:
                with path.open("rb") as log:
                    log.seek(places[name])
                    new = log.read(size - places[name])
                places[name] += len(new)
                *whole, parts[name] = (parts[name] + new.decode(errors="replace")).split("\n")
                yield from ((name, line) for line in whole)
        sleep(FOLLOW_EVERY_S)
