"""Documentation that can fail: README.md is held against the code, NOTES.md against the stored evidence."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs import DOCUMENTS, ROOT, renewed

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_generated_parts_are_fresh(document: str) -> None:
    """Tables say what the code and the stored evidence say (`python -m tests.docs` renews them)."""
    text = (ROOT / document).read_text()
    assert "<!-- /" in text
    assert renewed(text) == text


def test_make_targets_exist() -> None:
    """Every `make TARGET` in README and CONTRIBUTING is a target."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_fleet_verbs_exist() -> None:
    """Every `python -m fleet VERB` in README is a verb, with the options shown."""
    shown = [re.findall(r"-m fleet (log \w+|\w+)([^#]*)", command) for command in COMMANDS]
    verbs = [found[0] for found in shown if found]
    assert {verb for verb, _ in verbs} >= {"status", "logs", "scale", "predict"}
    for verb, arguments in verbs:
        done = subprocess.run([sys.executable, "-m", "fleet", *verb.split(), "--help"], cwd=ROOT, capture_output=True, check=True)
        for option in re.findall(r"--\w+", arguments):
            assert option in done.stdout.decode(), f"fleet {verb} has no {option}"


def test_tree_is_the_tree() -> None:
    """Every folder and file of README's tree exists, and no top-level folder is missing from it."""
    tree = README.split("## The house")[1]
    folders = re.findall(r"^    ([\w/]+)/ ", tree, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    assert {folder.split("/")[0] for folder in folders} == top
    for name in re.findall(r"\b([\w/]+\.(?:py|md|yaml|conf))\b", tree):
        assert any(path == name or path.endswith(f"/{name}") for path in tracked), name


@pytest.mark.parametrize("document", ["README.md", "NOTES.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_path_of_a_machine(document: str) -> None:
    """Documents hold no absolute path of anybody's machine."""
    assert not re.search(r"(?<![\w:.])/(home|root|tmp|work)/", (ROOT / document).read_text())
