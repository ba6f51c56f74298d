"""Stand-ins for those official images that are not here: real Kafka, real PostgreSQL, a real S3 server, packaged from what a
machine without an image registry can have (Debian's packages, and what other tests have brought or built).

Their names are their own, so nobody takes one for the official image; the label kronos.stand-in says what each stands for.
Knows: how they are made, once (`stand_in/` has the recipes). Does not know: Compose, what the servers are used for.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests import kafka_server, s3_server
from tests.stack.stack import command

RECIPES: Final = Path(__file__).parent / "stand_in"
LACKING: Final = {"kafka": kafka_server.WHY_NOT, "postgres": "", "s3": s3_server.WHY_NOT}


class Lacking(Exception):
    """Neither the image is here nor what its stand-in is made of."""


def image_for(service: str, official: str) -> str:
    """The official image where it is here; else its stand-in, made now: minutes the first time, then a second.

    Raises Lacking, or RuntimeError with the builder's own words."""
    if here(official):
        return official
    if why := LACKING[service]:
        raise Lacking(f"{official} is not here, and its stand-in {why}")
    tag = official.rpartition(":")[2]
    name = f"kronos-stand-in/{service}:{tag}"
    with TemporaryDirectory() as folder:
        gather(service, Path(folder))
        options = ("--tag", name, "--label", f"kronos.stand-in={official}", "--build-arg", f"VERSION={tag}")
        command("docker", "build", *options, folder, env={"DOCKER_BUILDKIT": "1"})
    return name


def here(image: str) -> bool:
    """The engine has it."""
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def gather(service: str, folder: Path) -> None:
    """All that the builder needs: the recipe and the programs of this machine."""
    shutil.copytree(RECIPES / service, folder, dirs_exist_ok=True)
    if service == "kafka":
        shutil.copytree(kafka_server.jars(), folder / "libs")
    if service == "s3":
        shutil.copy(s3_server.PROGRAM or "", folder / "versitygw")
