"""All of `--profile full`, started as README says: full.env with the passwords filled in, and every server beside the workers.

Images that are not here have stand-ins (stand_ins.py), with the same servers in them; everything else of a service is what
docker-compose.yml says.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from app.jobs.redis_store import PREFIX
from tests.fleet.live import free_ports
from tests.serving import request
from tests.stack.stack import ROOT, Stack, command, missing_engine, wait_until
from tests.stack.stand_ins import RECIPES, Lacking, image_for
from tests.stack.test_hardening import SERVERS, weaknesses

PASSWORDS = {"POSTGRES_PASSWORD": "first1secret", "AWS_SECRET_ACCESS_KEY": "second2secret"}
KEEPERS = ("kafka", "postgres", "s3")
ACCEPTED = {"postgres": {"secret in the environment"}, "s3": {"secret in the environment", "runs as root"}}
"""Compose gives a secret to a container whose root is read-only only from a file of the host, and full.env is the one place for
all passwords; the folder of rclone's image is root's, and root has no capability there."""
KEPT_S = 60.0
pytestmark = pytest.mark.timeout(1200)  # stand-ins are built
READ = """
import json, os
import obstore, pyarrow, pyarrow.parquet
from app.prediction_log.storage import open_store
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

events, ended = [], 0
consumer = Consumer({"bootstrap.servers": os.environ["KRONOS_KAFKA_SERVERS"], "group.id": "tests", "enable.auto.commit": False,
                     "enable.partition.eof": True})
partitions = consumer.list_topics("kronos.forecasts", timeout=10).topics["kronos.forecasts"].partitions
consumer.assign([TopicPartition("kronos.forecasts", number, OFFSET_BEGINNING) for number in partitions])
while ended < len(partitions):
    message = consumer.poll(20)
    if message.error():
        ended += 1
    else:
        events.append(json.loads(message.value()))
consumer.close()
store, rows = open_store(os.environ["KRONOS_PREDICTION_LOG"]), []
for file in obstore.list(store).collect():
    content = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(bytes(obstore.get(store, file["path"]).bytes())))
    rows += content.read(["record_id", "series_id"], use_threads=False).to_pylist()  # its threads can abort a process that ends
print(json.dumps({name: [[each["record_id"], each["series_id"]] for each in found] for name, found in
                  (("kafka", events), ("s3", rows))}))
"""
"""Run in a worker's container, which is where the servers can be reached: all records on the topic and in the object store."""
ROWS = "SELECT coalesce(json_agg(json_build_array(replace(record_id::text, '-', ''), series_id)), '[]') FROM kronos.forecasts"

Kept = list[tuple[str, str]]
"""Record and series of each forecast that a keeper has."""


def filled_in(folder: Path) -> Path:
    """full.env as an operator leaves it."""
    text = (ROOT / "full.env").read_text()
    for name, secret in PASSWORDS.items():
        text, filled = re.subn(rf"(?m)^{name}=$", f"{name}={secret}", text)
        assert filled == 1, name
    file = folder / "filled.env"
    file.write_text(text)
    return file


def use_what_is_here(stack: Stack) -> None:
    """Each keeper's image in the stack's own docker-compose.yml becomes one that is here. Raises Lacking."""
    text = stack.file.read_text()
    for service in KEEPERS:
        official = yaml.safe_load(text)["services"][service]["image"]
        text = text.replace(f" image: {official}\n", f" image: {image_for(service, official)}\n")
    stack.file.write_text(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers and every server; the prediction log writes after a second instead of ten."""
    if reason := missing_engine():
        pytest.skip(reason)
    port, folder = free_ports(), tmp_path_factory.mktemp("profile")
    env = {"COMPOSE_ENV_FILES": str(filled_in(folder)), "KRONOS_CACHE_TTL": "10", "KRONOS_PREDICTION_LOG_AGE": "1"}
    found = Stack(f"kt-{port}", port, folder, env)
    try:
        use_what_is_here(found)
    except Lacking as lacking:
        pytest.skip(str(lacking))
    try:
        found.up(2)
        yield found
    finally:
        found.down()


def asked(series: str, seed: int) -> bytes:
    return json.dumps(request(40, series_id=series, overrides={"pred_len": 8, "seed": seed})).encode()


def predict(stack: Stack, name: str, count: int) -> Counter[str]:
    """Ask for ``count`` series through the door: all are answered, by both workers. What should be kept of them: each once."""
    series = [f"{name}-{number}" for number in range(count)]
    answers = [stack.ask("POST", "/v1/predict/single", asked(each, seed)) for seed, each in enumerate(series)]
    assert [answer.status for answer in answers] == [200] * count
    assert len({answer.headers["x-served-by"] for answer in answers}) == 2
    return Counter(series)


def kept(stack: Stack, name: str) -> dict[str, Kept]:
    """What each keeper has of series whose names begin so, by record."""
    found = json.loads(command("docker", "exec", stack.containers()[0].id, "python", "-c", READ))
    psql = ("psql", "--username", "kronos", "--tuples-only", "--command", ROWS)
    found["postgres"] = json.loads(command("docker", "exec", stack.containers("postgres")[0].id, *psql))
    return {keeper: sorted((record, series) for record, series in found[keeper] if series.startswith(name)) for keeper in KEEPERS}


def await_kept(stack: Stack, name: str, forecasts: Counter[str]) -> None:
    """All three have each forecast, once, under the same record."""
    found: dict[str, Kept] = {}

    def all_there() -> bool:
        found.update(kept(stack, name))
        return all(len(records) >= forecasts.total() for records in found.values())

    try:
        wait_until(all_there, KEPT_S, 1)
    finally:
        print({keeper: len(records) for keeper, records in found.items()})
    assert found["kafka"] == found["postgres"] == found["s3"]
    assert Counter(series for _, series in found["kafka"]) == forecasts


def test_every_service_is_healthy(full: Stack) -> None:
    """With nothing but full.env, two passwords and `up`."""
    healthy = {service: [each.healthy for each in full.containers(service)] for service in sorted(SERVERS)}
    assert healthy == {service: [True] for service in sorted(SERVERS)}
    assert [each.healthy for each in full.containers()] == [True, True]
    assert full.ask("GET", "/healthz").status == 200


def test_every_forecast_is_kept_once_by_each(full: Stack) -> None:
    """An event, a row of the table and a row of the prediction log, under one id, and no more of them than were asked for."""
    await_kept(full, "plain", predict(full, "plain", 12))


def test_a_job_is_done_through_valkey(full: Stack) -> None:
    """Submitted through the door, it is in the server for jobs, ends well, and is kept as every forecast."""
    answer = full.ask("POST", "/v1/jobs", asked("job-0", 1))
    assert answer.status == 202, answer.body
    task = json.loads(answer.body)["task_id"]
    document = json.loads(full.ask("GET", f"/v1/jobs/{task}?wait=30").body)
    assert document["state"] == "succeeded" and len(document["result"]["prediction"]) == 8
    state = ("valkey-cli", "hget", f"{PREFIX}job:{task}", "state")
    assert command("docker", "exec", full.containers("valkey-jobs")[0].id, *state).strip() == "succeeded"
    await_kept(full, "job", Counter(["job-0"]))


def test_without_its_keepers_the_fleet_predicts_and_forgets_nothing(full: Stack) -> None:
    """Killed, all three at once: predictions go on as before. Back, they get what was forecast meanwhile, once."""
    command("docker", "kill", *(full.containers(keeper)[0].id for keeper in KEEPERS))
    assert not [keeper for keeper in KEEPERS if full.containers(keeper)]
    forecasts = predict(full, "meanwhile", 12)
    full.compose("up", "-d", "--no-build", "--wait", *KEEPERS)
    await_kept(full, "meanwhile", forecasts)


@pytest.mark.parametrize("service", sorted(SERVERS))
def test_the_servers_have_nothing_they_do_not_need(full: Stack, service: str) -> None:
    """The security floor of all containers, seen in the engine's own facts."""
    [container] = full.containers(service)
    assert weaknesses(container.facts) == ACCEPTED.get(service, set())
    assert not container.facts["HostConfig"]["PortBindings"]


@pytest.mark.parametrize(
    "arguments",
    [
        "serve s3 --addr :9000 --auth-key key,secret",
        "serve s3 --addr :9001 --auth-key key,secret /data",
        "serve s3 --addr :9000 --auth-key key, /data",
        "serve s3 --addr :9000 --auth-key key /data",
        "serve s3 --addr :9000 --auth-key key,secret /data --no-auth",
        "serve http --addr :9000 --auth-key key,secret /data",
    ],
)
def test_the_stand_in_for_rclone_takes_no_other_arguments(arguments: str) -> None:
    """What it does not understand it may not pass over, or a fault in docker-compose.yml would not be seen."""
    done = subprocess.run(["sh", str(RECIPES / "s3" / "rclone"), *arguments.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "this stand-in" in done.stderr
