"""Finding k6 and building it, with programs that only pretend to be k6 and Go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet.k6 import MODULE, NoK6, Version, built_path, find, find_or_build, fits, pinned, version_of, without_direct

PIN = Version(2, 2, 0)
GO = """#!/bin/sh
[ "$1" = env ] && { echo "https://proxy.example,https://other.example|direct"; exit; }
echo "$GOPROXY" >> "$GO_LOG"
sleep "${GO_SLEEP:-0}"
[ -n "$GO_FAILS" ] && { echo "go: cannot find it"; exit 1; }
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho "k6 %s (go1.30.1, linux/amd64)"\\n' "${GO_BUILDS:-v2.2.0}" > "$2" && chmod +x "$2"
"""


@dataclass
class Place:
    """A machine with a PATH and a cache of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        self.env |= {"PATH": f"{self.folder}/bin:/bin:/usr/bin", "GO_LOG": str(self.folder / "go.log")}

    def install(self, name: str, script: str) -> Path:
        program = self.folder / "bin" / name
        program.write_text(script)
        program.chmod(0o755)
        return program

    def k6(self, version: str) -> Path:
        return self.install("k6", f"#!/bin/sh\necho 'k6 {version} (go1.26.8, linux/amd64)'\n")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def find_or_build(self) -> Path:
        return find_or_build(self.said.append, self.env, self.cache)

    def builds(self) -> list[str]:
        """The GOPROXY of each build."""
        log = self.folder / "go.log"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    "said, version",
    [
        ("k6 v2.2.0 (go1.26.8, linux/amd64)\n", Version(2, 2, 0)),
        ("k6 v2.10.3+dirty (commit/abc, go1.27, darwin/arm64)", Version(2, 10, 3)),
        ("k6-v2.2.0-linux-x86_64 v2.2.0 (go1.26.8, linux/amd64)", Version(2, 2, 0)),
        ("k6: command not found", None),
        ("", None),
    ],
)
def test_version_is_read(said: str, version: Version | None) -> None:
    """k6's own words are understood, whatever its file is called."""
    assert version_of(said) == version


def test_pin_is_read_from_go_mod() -> None:
    """The pinned version has one home, and everything Go downloads for it has its hash there."""
    assert pinned((MODULE / "go.mod").read_text()) == PIN
    assert f"go.k6.io/k6/v2 {PIN} h1:" in (MODULE / "go.sum").read_text()
    with pytest.raises(ValueError, match="requires no"):
        pinned("module x\n\nrequire go.k6.io/k6 v1.8.1\n")


@pytest.mark.parametrize(
    "version, right",
    [
        (PIN, True), (Version(2, 2, 1), True), (Version(2, 11, 0), True),
        (Version(2, 1, 9), False), (Version(1, 9, 9), False), (Version(3, 0, 0), False), (None, False),
    ],
)  # fmt: skip
def test_which_versions_fit(version: Version | None, right: bool) -> None:
    """The pinned one or a later one of the same major version."""
    assert fits(version, PIN) is right


@pytest.mark.parametrize(
    "goproxy, kept",
    [("http://a,direct\n", "http://a"), ("http://a|http://b|direct", "http://a|http://b"), ("off", "off"), ("direct", "direct")],
)
def test_direct_is_left_out(goproxy: str, kept: str) -> None:
    """Modules come from the machine's proxies; a machine that has none keeps its own setting."""
    assert without_direct(goproxy) == kept


def test_one_on_path_is_taken(place: Place) -> None:
    """A k6 that fits is used as it is, without Go."""
    assert place.k6("v2.3.0") == place.find_or_build()
    assert place.said == []


def test_one_that_does_not_fit_is_named(place: Place) -> None:
    """Without Go the message says what is there, what is needed and where to get it."""
    old = place.k6("v1.8.1")
    with pytest.raises(NoK6) as refused:
        place.find_or_build()
    assert f"{old} is v1.8.1, not v2.2.0" in refused.value.what and "no Go" in refused.value.what
    assert "install k6 v2.2.0" in refused.value.then


def test_it_is_built_once(place: Place) -> None:
    """The first call builds with the proxies only and says so; the second finds what is there."""
    place.install("go", GO)
    first, second = place.find_or_build(), place.find_or_build()
    assert first == second == built_path(PIN, place.cache) == find(place.env, place.cache)
    assert place.builds() == ["https://proxy.example,https://other.example"]
    assert len(place.said) == 1 and "building v2.2.0" in place.said[0]


def test_two_commands_build_once(place: Place) -> None:
    """The second waits for the first, says so, and takes its k6."""
    place.install("go", GO)
    place.env["GO_SLEEP"] = "0.5"
    threads = [threading.Thread(target=place.find_or_build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(place.builds()) == 1
    assert any("waiting" in text for text in place.said)


@pytest.mark.parametrize("wish, words", [({"GO_FAILS": "1"}, "cannot find it"), ({"GO_BUILDS": "v2.1.0"}, "says it is v2.1.0")])
def test_a_failed_build_leaves_no_k6(place: Place, wish: dict[str, str], words: str) -> None:
    """Go's last words are passed on, and what is not the pinned k6 is not kept."""
    place.install("go", GO)
    place.env |= wish
    with pytest.raises(NoK6, match=words):
        place.find_or_build()
    assert find(place.env, place.cache) is None


def test_an_interrupted_build_ends_with_its_compilers(place: Place) -> None:
    """Ctrl-C: Go is gone too, no half k6 is left, the next call builds."""
    place.install("go", GO)
    marker = "61.7"  # seconds: to tell this sleep from others
    script = "import sys, pathlib, fleet.k6 as k6; k6.find_or_build(k6.tell, cache=pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place.cache)], env={**os.environ, **place.env, "GO_SLEEP": marker},
        cwd=MODULE.parents[2], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not place.builds():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    sleeping = [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"sleep\0{marker}" in words(path)]
    assert sleeping == [] and find(place.env, place.cache) is None
    assert place.find_or_build().exists()


def words(cmdline: Path) -> str:
    """The command of a process, empty when it has just gone."""
    try:
        return cmdline.read_text(errors="replace")
    except OSError:
        return ""
