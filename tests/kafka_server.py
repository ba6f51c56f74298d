"""A real Kafka broker for the tests, of the version that kafka/pom.xml pins. ``python -m tests.kafka_server`` gets it.

Knows: how Maven brings it here (46 MB, once), how to start, kill and stall one on ports of its own, how to read a topic.
Does not know: what is published.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.kv_server import free_port
from tests.serving import until

ROOT = Path(__file__).parents[1]
POM = ROOT / "tests" / "kafka" / "pom.xml"
CACHE = ROOT / ".cache" / "kafka"
CLUSTER = "a3Jvbm9zLXRlc3RzLTAwMA"  # any 16 bytes in base64
START_S = 90.0
QUICK_START = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
USER, PASSWORD = "kronos", "open-sesame"

LACKING = [program for program in ("java", "mvn") if not shutil.which(program)]
WHY_NOT = f"needs {' and '.join(LACKING)} on PATH (Debian: default-jre-headless, maven)" if LACKING else ""


class NoKafka(Exception):
    """Maven could not bring it."""


def jars() -> Path:
    """The folder of the broker's jars, brought by Maven the first time. Raises NoKafka."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([\d.]+)<", POM.read_text())
    assert found
    folder = CACHE / found[1]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = CACHE / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            command = [
                "mvn", "--batch-mode", "--quiet", "--strict-checksums", f"-Dmaven.repo.local={CACHE / 'maven'}",
                "--file", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={draft}",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=280)
            if done.returncode:
                raise NoKafka(f"Maven could not bring Kafka: {done.stdout[-500:]}")
            draft.rename(folder)
    return folder


@dataclass
class Broker:
    """One node that is broker and controller. It keeps its log, so it can be killed and started again."""

    folder: Path
    classpath: str
    port: int = field(default_factory=free_port)
    sasl_port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def format(self) -> None:
        """Make it a node of a cluster of its own."""
        self.properties.write_text(PROPERTIES.format(it=self, user=USER, password=PASSWORD))
        self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self.properties)).wait(60)

    def start(self) -> None:
        self.process = self._java("kafka.Kafka", str(self.properties))
        assert until(self._answers, START_S), (self.folder / "out").read_text()[-2000:]

    def kill(self) -> None:
        """No goodbye, as when the machine's memory is full."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def stall(self) -> None:
        """Go on listening and answer nothing."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    @property
    def properties(self) -> Path:
        return self.folder / "properties"

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = ["java", *QUICK_START, "-cp", self.classpath, *arguments]
        with (self.folder / "out").open("ab") as out:
            return subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT)

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, (self.folder / "out").read_text()[-2000:]
        with suppress(OSError, KafkaException), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return bool(AdminClient({"bootstrap.servers": self.servers}).list_topics(timeout=2).brokers)
        return False

    def read(self, topic: str) -> list[Message]:
        """Every message of a topic; none when there is no such topic."""
        options = {"bootstrap.servers": self.servers, "group.id": "tests", "enable.partition.eof": True}
        consumer = Consumer(options)
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            found: list[Message] = []
            ends = 0
            while ends < len(partitions):
                message = consumer.poll(20)
                assert message is not None, "the broker says nothing"
                error = message.error()
                assert error is None or error.code() == KafkaError._PARTITION_EOF, error
                if error:
                    ends += 1
                else:
                    found.append(message)
            return found
        finally:
            consumer.close()


PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{it.controller_port}
listeners=PLAINTEXT://127.0.0.1:{it.port},SASL_PLAINTEXT://127.0.0.1:{it.sasl_port},CONTROLLER://127.0.0.1:{it.controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
log.dirs={it.folder}/log
num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


@contextmanager
def broker() -> Iterator[Broker]:
    """A formatted broker that is not started yet, gone at the end, however it comes."""
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        node = Broker(Path(folder), f"{jars()}/*")
        node.format()
        try:
            yield node
        finally:
            node.kill()


if __name__ == "__main__":
    print(jars())
