"""Finds k6, or builds the pinned one; ``python -m fleet.k6`` prints where it is.

The pin is ``tests/load/k6/go.mod``, with the hash of every module in ``go.sum`` beside it: what Go downloads is checked
against them.
Knows: versions, where a k6 can be, how Go builds it. Does not know: scripts and runs; that is ``fleet.load``.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from fleet.errors import INTERRUPTED, FleetError

ROOT: Final = Path(__file__).resolve().parents[1]
MODULE: Final = ROOT / "tests" / "load" / "k6"
CACHE: Final = ROOT / ".cache" / "k6"
PACKAGE: Final = "go.k6.io/k6/v2"
ASK_TIMEOUT_S: Final = 20
PROGRESS_EVERY_S: Final = 5.0

Say = Callable[[str], None]


class NoK6(FleetError):
    """There is no k6 that fits, and none can be built."""

    code = 20


class Version(NamedTuple):
    """Of k6."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}"


def version_of(said: str) -> Version | None:
    """What ``k6 version`` said, such as "k6 v2.2.0 (go1.26.8, linux/amd64)"; None when that is not it.

    k6 calls itself by the name of its file, so the first word can be any.
    """
    found = re.match(r"\S+ v(\d+)\.(\d+)\.(\d+)\S* \(", said)
    return Version(*map(int, found.groups())) if found else None


def pinned(go_mod: str) -> Version:
    """The k6 that a go.mod requires. Raises ValueError when it requires none."""
    found = re.search(rf"^\s*(?:require )?{re.escape(PACKAGE)} v(\d+)\.(\d+)\.(\d+)", go_mod, re.MULTILINE)
    if found is None:
        raise ValueError(f"go.mod requires no {PACKAGE}")
    return Version(*map(int, found.groups()))


def fits(version: Version | None, pin: Version) -> bool:
    """The scripts run on any k6 of the pinned major version that is not older than the pinned one."""
    return version is not None and version.major == pin.major and version >= pin


def without_direct(goproxy: str) -> str:
    """GOPROXY without its last resort, which runs version-control tools against other hosts."""
    return re.sub(r"[,|]direct\b", "", goproxy.strip())


def ask_version(program: Path | str) -> Version | None:
    """The version a program says it has, None when it cannot be asked."""
    try:
        asked = subprocess.run([program, "version"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return version_of(asked.stdout)


def built_path(pin: Version, cache: Path = CACHE) -> Path:
    """Where the k6 built here is, or will be."""
    return cache / f"k6-{pin}-{platform.system().lower()}-{platform.machine()}"


def find(env: Mapping[str, str] = os.environ, cache: Path = CACHE) -> Path | None:
    """A k6 that fits, on PATH or built before; None when there is none."""
    pin = pinned((MODULE / "go.mod").read_text())
    on_path = shutil.which("k6", path=env.get("PATH", ""))
    if on_path and fits(ask_version(on_path), pin):
        return Path(on_path)
    built = built_path(pin, cache)
    return built if built.exists() else None


def find_or_build(say: Say, env: Mapping[str, str] = os.environ, cache: Path = CACHE) -> Path:
    """A k6 that fits; the first time it may be built, a minute and a half on two cores. Raises NoK6."""
    if found := find(env, cache):
        return found
    pin = pinned((MODULE / "go.mod").read_text())
    on_path = shutil.which("k6", path=env.get("PATH", ""))
    lacking = f"{on_path} is {ask_version(on_path) or 'no k6'}, not {pin} or a newer v{pin.major}" if on_path else "no k6 on PATH"
    go = shutil.which("go", path=env.get("PATH", ""))
    if go is None:
        raise NoK6(f"{lacking}, and no Go to build it with", f"install k6 {pin} (github.com/grafana/k6/releases) or Go (go.dev)")
    built = built_path(pin, cache)
    with one_at_a_time(cache, say):
        if not built.exists():
            say(f"{lacking}: building {pin} with Go, this once; a minute or two …")
            build(go, built, pin, say, env)
    return built


@contextmanager
def one_at_a_time(cache: Path, say: Say) -> Iterator[None]:
    """Wait for another build, if there is one; the kernel frees the lock however that ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another command is building k6; waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(go: str, target: Path, pin: Version, say: Say, env: Mapping[str, str]) -> None:
    """Compile the pinned k6 to ``target``, which is there whole or not at all. Raises NoK6."""
    for left in target.parent.glob("draft-*"):  # of a build that was killed
        left.unlink()
    draft = target.with_name(f"draft-{os.getpid()}")
    proxy = subprocess.run([go, "env", "GOPROXY"], env=dict(env), capture_output=True, text=True, timeout=ASK_TIMEOUT_S).stdout
    environment = {**env, "GOPROXY": without_direct(proxy), "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0"}
    argv = [go, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(draft), PACKAGE]
    code, lines = run_with_progress(argv, environment, say)
    if code != 0:
        last = "\n".join(lines[-5:])
        raise NoK6(f"Go could not build k6 {pin}:\n{last}", f"try again when that is mended, or put k6 {pin} on PATH")
    if (version := ask_version(draft)) != pin:
        raise NoK6(f"the k6 that was built says it is {version}, not {pin}", f"look into {MODULE.relative_to(ROOT)}/go.mod")
    draft.replace(target)


def run_with_progress(argv: list[str], env: Mapping[str, str], say: Say) -> tuple[int, list[str]]:
    """Exit code and lines of a program in the module's folder. When we are interrupted it ends too."""
    began = spoken = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        argv, cwd=MODULE, env=dict(env), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip

        def read() -> None:
            for line in process.stdout or ():
                lines.append(line.rstrip())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - spoken >= PROGRESS_EVERY_S:
                    spoken = time.monotonic()
                    say(f"  {spoken - began:.0f} s, {len(lines)} steps")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # Go and its compilers: the session that was started above
            reader.join()
    return process.returncode, lines


def tell(text: str) -> None:
    """Progress and trouble, beside standard output."""
    print(text, file=sys.stderr, flush=True)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a build as Ctrl-C does: with its compilers."""
    raise KeyboardInterrupt


def main() -> int:
    """Print the path of a k6 that fits."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        print(find_or_build(tell))
    except NoK6 as error:
        tell(f"{error.what}\nNext: {error.then}")
        return error.code
    except KeyboardInterrupt:
        tell("Interrupted; what Go has compiled and downloaded is kept for the next try")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
