"""The studies of this project: which fleets, which load, which question.

Knows: names, quotas, dials. Does not know: how anything is measured.
"""

from __future__ import annotations

from benchmarks.studies.study import Fleet, Study, Variant

QUOTA = 0.2
"""Cores of one worker where the host must not be the limit: five of them leave half of two cores to k6, nginx and the rest."""
WHOLE_HOST = 2.0
"""Cores of one worker where there is no quota but the host's."""
FOUR_QUOTA = 0.35
"""Cores of each of four workers in the comparisons of alternatives: the shorter runs need more answers a second."""
USERS, USERS_OF_ALTERNATIVES = 50, 32
"""The second is as many as four workers have batch slots: their answers come sooner, so that short runs say more."""
STEPS, RAMP_STEP_S, RAMP_TOP, RAMP_OBJECTIVE_MS = 10, 12.0, 20.0, 2000


def closed(name: str, fleet: str, users: int = USERS, twin_of: str = "") -> Variant:
    """Users who wait for their answer; 400 candles in, 120 out, as the script has it."""
    return Variant(name, fleet, {"SCENARIO": "baseline", "VUS": str(users)}, twin_of)


def workers(name: str, question: str, cpus: float) -> Study:
    """Three workers against five, five twice."""
    return Study(
        name, question,
        (Fleet("three", 3, cpus), Fleet("five", 5, cpus)),
        (closed("three", "three"), closed("five", "five"), closed("five-again", "five", twin_of="five")),
        rounds=6, seconds=30, pairs=(("three", "five"),), prometheus=True,
        texts={"baseline_3workers.txt": "three", "tuned_5workers.txt": "five"},
    )  # fmt: skip


def alternative(name: str, question: str, fleets: tuple[Fleet, ...]) -> Study:
    """The first fleet, measured twice, against each of the others."""
    first, *others = (fleet.name for fleet in fleets)
    variants = [closed(fleet.name, fleet.name, USERS_OF_ALTERNATIVES) for fleet in fleets]
    twin = closed(f"{first}-again", first, USERS_OF_ALTERNATIVES, twin_of=first)
    pairs = tuple((first, other) for other in others)
    return Study(name, question, fleets, (*variants, twin), rounds=6, seconds=15, pairs=pairs)


def four(name: str, env: dict[str, str] | None = None, edits: dict[str, dict[str, str]] | None = None) -> Fleet:
    """Four workers that share a core."""
    return Fleet(name, 4, FOUR_QUOTA, env or {}, edits or {})


FIVE = Fleet("five", 5, QUOTA)
UPSTREAM, NGINX = "nginx/containers/upstream.conf", "nginx/nginx.conf"
ROUND_ROBIN = {UPSTREAM: {"    least_conn;": "    # round robin"}}
NO_KEEP_ALIVE = {NGINX: {'proxy_set_header Connection "";': 'proxy_set_header Connection "close";'}}
WEAK: dict[str, dict[str, object]] = {
    "weak": {
        "extends": {"file": "docker-compose.yml", "service": "worker"},
        "deploy": {"replicas": 1, "resources": {"limits": {"cpus": f"{FOUR_QUOTA / 2:g}"}}},
        "networks": {"default": {"aliases": ["worker"]}},
    }
}
"""A worker with half the quota, found by nginx under the same name as the others."""


CACHES = {
    "uncached": {"KRONOS_CACHE_TTL": "0"},
    "in-worker": {"KRONOS_CACHE_TTL": "10"},
    "shared": {"KRONOS_CACHE_TTL": "10", "KRONOS_REDIS_URL": "redis://valkey:6379", "COMPOSE_PROFILES": "cache"},
}
"""No result cache, one in each worker, one that the workers share (the profile of Compose starts its server)."""


def repeated() -> Study:
    """Popular requests at a fixed rate, half as many again as two cores compute. (Users who wait would be held up by nobody
    but k6 once answers are known.)"""
    at_a_rate = {"SCENARIO": "open", "RATE": "20", "VUS": "100", "POPULAR": "8"}
    fleets = tuple(Fleet(name, 4, WHOLE_HOST, env) for name, env in CACHES.items())
    rounds = [Variant(name, name, at_a_rate) for name in CACHES]
    return Study(
        "repeated", "Eight popular requests are asked again and again: what does keeping answers for ten seconds do?",
        fleets,
        (*rounds, Variant("uncached-again", "uncached", at_a_rate, "uncached")),
        rounds=6, seconds=20, pairs=(("uncached", "in-worker"), ("uncached", "shared"), ("in-worker", "shared")),
    )  # fmt: skip


def users() -> Study:
    """More and more users on one fleet; then a burst and a rising open load."""
    steps = [closed(f"users-{count}", "five", count) for count in (10, 20, 30, 40, 50)]
    ramp = {
        "SCENARIO": "ramp", "RATE": f"{RAMP_TOP:g}", "STEPS": str(STEPS), "DURATION": f"{STEPS * RAMP_STEP_S:g}s",
        "P95_MS": str(RAMP_OBJECTIVE_MS),
    }  # fmt: skip
    return Study(
        "users", "What does a fleet of five do with more and more users, and what breaks first?",
        (FIVE,),
        (
            *steps, closed("users-50-again", "five", 50, "users-50"),
            Variant("burst", "five", {"SCENARIO": "burst", "VUS": "100", "DURATION": "60s"}, once=True),
            Variant("ramp", "five", ramp, once=True, slice_s=RAMP_STEP_S),
        ),
        rounds=3, seconds=20, prometheus=True,
    )  # fmt: skip


def sustained() -> Study:
    """Fifteen minutes without a pause."""
    dials = {"SCENARIO": "sustained", "VUS": str(USERS), "DURATION": "900s"}
    return Study(
        "sustained", "Does anything drift in fifteen minutes of 50 users: throughput, latency, memory?",
        (FIVE,), (Variant("sustained", "five", dials, once=True, slice_s=60.0),), rounds=0, seconds=900,
    )  # fmt: skip


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        workers("workers", "Is five better than three, when the host is not the limit?", QUOTA),
        workers("workers-unlimited", "Is five better than three, when nothing but the host is the limit?", WHOLE_HOST),
        users(),
        sustained(),
        repeated(),
        alternative(
            "processes", "Four containers of one process, or one container of four processes?",
            (four("containers"), Fleet("processes", 1, 4 * FOUR_QUOTA, {"GUNICORN_CMD_ARGS": "--workers 4"})),
        ),
        alternative(
            "threads", "One worker with one thread, or with two?",
            tuple(Fleet(f"threads-{count}", 1, WHOLE_HOST, {"KRONOS_THREADS": str(count)}) for count in (1, 2)),
        ),
        alternative(
            "slots", "How many sample paths should share a decode step?",
            (four("slots-8"), *(four(f"slots-{count}", {"KRONOS_SLOTS": str(count)}) for count in (1, 4))),
        ),
        alternative(
            "keepalive", "Connections to the workers kept, or a new one for each request?",
            (four("kept"), four("closed", edits=NO_KEEP_ALIVE)),
        ),
        alternative(
            "balancing", "The worker with the fewest requests, or each in turn, when all are equal?",
            (four("least-conn"), four("round-robin", edits=ROUND_ROBIN)),
        ),
        alternative(
            "balancing-weak", "The same, when one of four workers has half the cores of the others?",
            (
                Fleet("least-conn", 3, FOUR_QUOTA, services=WEAK, other_cores=FOUR_QUOTA / 2),
                Fleet("round-robin", 3, FOUR_QUOTA, edits=ROUND_ROBIN, services=WEAK, other_cores=FOUR_QUOTA / 2),
            ),
        ),
    )
}  # fmt: skip
ALTERNATIVES = ("processes", "threads", "slots", "keepalive", "balancing", "balancing-weak", "repeated")
GROUPS = {"alternatives": ALTERNATIVES}
