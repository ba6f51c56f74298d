"""The workers' settings, seen from outside: which variables they are, what they come to, whether there is a checkpoint.

Knows: how to ask the worker's own code (in a process of its own: nothing of ``app`` is imported here). Does not know:
where workers run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.errors import BadSetting, MissingModel
from fleet.host import CommandFailed, Machine

MODEL, TOKENIZER, JOBS = "KRONOS_MODEL", "KRONOS_TOKENIZER", "KRONOS_JOBS_URL"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
CHECKPOINT_FILES = ("config.json", "model.safetensors")

READ_SETTINGS = """
import sys
from app import settings
try:
    print(settings.load().model_dump_json())
except settings.SettingsError as error:
    sys.exit(str(error))
"""


def is_setting(key: str) -> bool:
    """Whether an environment variable is a setting of the workers."""
    return key.startswith("KRONOS_") or key in {"PREDICT_MAX_CONCURRENCY", "ENABLE_PREWARM"}


def effective_settings(env: Mapping[str, str], settings: Mapping[str, str], root: Path) -> dict[str, Any]:
    """What a worker with these settings would read: environment, config.yaml, defaults. Raises BadSetting."""
    asked = {**{key: value for key, value in env.items() if not is_setting(key)}, **settings}
    try:
        found = Machine().ask([sys.executable, "-c", READ_SETTINGS], asked, root)
    except CommandFailed as error:
        what = "; ".join(error.output.strip().splitlines()[-3:])
        raise BadSetting(what, "correct it where it is set (shell, .env or config.yaml), then the same command") from error
    read: dict[str, Any] = json.loads(found)
    return read


def check_checkpoint(kind: str, source: str, folder: Path, again: str) -> None:
    """Raises MissingModel unless ``folder`` (what ``source`` means) holds a checkpoint, or ``source`` is a hub id."""
    if folder.is_dir():
        missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        if missing:
            raise MissingModel(f"the {kind} folder {source} has no {' and no '.join(missing)}", again)
    elif not HUB_ID.fullmatch(source) or source.startswith((".", "/")):
        raise MissingModel(f"the {kind} {source} is neither a folder nor a hub id (owner/name@revision)", again)
