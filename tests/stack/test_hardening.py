"""The security floor, as the engine shows it: ``docker inspect`` of every container, and of the workers' image."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.stack.stack import Container, Stack, command

SERVICES = ("worker", "nginx", "nginx-exporter", "prometheus")
SERVERS = {"valkey", "valkey-jobs", "kafka", "postgres", "s3"}
"""Of the profile `full`; test_full_profile.py starts them."""
ACCEPTED = {"nginx-exporter": {"no health check"}}
"""Nobody waits for the exporter, and Prometheus asks it every few seconds."""
SECRET = re.compile(r"(?i)(secret|password|passwd|token|credential|api_?key|private_?key)")
TOOLS = ("gcc", "g++", "cc", "make", "ld", "git", "curl", "wget", "docker")
NOT_SECRET = {"KRONOS_TOKENIZER"}


def weaknesses(facts: dict[str, Any]) -> set[str]:
    """What is not as it should be with one container."""
    host, config = facts["HostConfig"], facts["Config"]
    published = {binding["HostIp"] for bindings in (host["PortBindings"] or {}).values() for binding in bindings or []}
    mounted = " ".join(mount.get("Source", "") for mount in facts["Mounts"])
    checks = {
        "runs as root": config["User"].partition(":")[0] not in {"", "0", "root"},
        "writable root": host["ReadonlyRootfs"],
        "capabilities": host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"],
        "new privileges": "no-new-privileges:true" in (host["SecurityOpt"] or []),
        "no pids limit": 0 < (host["PidsLimit"] or 0) <= 512,
        "no memory limit": 0 < host["Memory"] <= 4 * 2**30,
        "published beyond this host": published <= {"127.0.0.1"},
        "engine's socket": "docker.sock" not in mounted,
        "host's namespaces": "host" not in {host["NetworkMode"], host["PidMode"], host["IpcMode"], host["UTSMode"]},
        "no restart": host["RestartPolicy"]["Name"] in {"unless-stopped", "always"},
        "log without end": {"max-size", "max-file"} <= (host["LogConfig"]["Config"] or {}).keys(),
        "no health check": config.get("Healthcheck", {}).get("Test", ["NONE"]) != ["NONE"],
        "floating tag": re.search(r":[\w][\w.-]*$", config["Image"]) is not None and not config["Image"].endswith(":latest"),
        "secret in the environment": not any(
            SECRET.search(name) and value
            for name, _, value in (each.partition("=") for each in config["Env"] or [])
            if name not in NOT_SECRET
        ),
    }  # fmt: skip
    return {name for name, well in checks.items() if not well}


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_nothing_they_do_not_need(stack: Stack, service: str) -> None:
    """Every container of the service, one by one."""
    found = {container.name: weaknesses(container.facts) for container in stack.containers(service)}
    assert found == dict.fromkeys(found, ACCEPTED.get(service, set())) and found


def test_only_nginx_publishes_a_port(stack: Stack) -> None:
    """One door, on this machine's own address unless .env says otherwise."""
    published = {service: stack.containers(service)[0].facts["HostConfig"]["PortBindings"] for service in SERVICES}
    assert {service for service, ports in published.items() if ports} == {"nginx"}
    assert published["nginx"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}


def test_every_service_of_the_file_is_looked_at(stack: Stack) -> None:
    """Grafana cannot be started here; the file says the same of it as of the others."""
    said = command("docker", "compose", "-f", str(stack.file), "--profile", "full", "config", "--format", "json")
    services = json.loads(said)["services"]
    assert set(services) == {*SERVICES, *SERVERS, "grafana"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped" and service["logging"]["options"]["max-size"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"] and limits["pids"], name
        assert re.search(r":[\w][\w.-]*$", service["image"]) and not service["image"].endswith(":latest"), name
    assert services["grafana"]["user"].split(":")[0] not in {"", "0", "root"}
    assert "ports" not in services["grafana"]


def test_what_the_file_says_is_what_processes_have(stack: Stack) -> None:
    """Seen from inside: a plain user, no capability, no way to get one, a root nobody can write to, one writable /tmp."""
    worker = stack.containers()[0]
    status = command("docker", "exec", worker.id, "cat", "/proc/1/status")
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["Uid"].split() == ["10001"] * 4
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0 and found["NoNewPrivs"] == "1"
    tried = {}
    for folder in ("/", "/srv", "/srv/app", "/venv", "/models", "/etc", "/tmp"):
        code = f"open('{folder}/x', 'w').write('x')"
        try:
            command("docker", "exec", worker.id, "python", "-c", code)
            tried[folder] = True
        except RuntimeError:
            tried[folder] = False
    assert [folder for folder, wrote in tried.items() if wrote] == ["/tmp"]


def test_the_image_has_what_a_worker_needs_and_no_more(stack: Stack) -> None:
    """Labels that say what it is; no compiler, no package manager, no caches, no secrets, no source history."""
    worker = stack.containers()[0]
    image = json.loads(command("docker", "image", "inspect", worker.facts["Image"]))[0]
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] and labels["org.opencontainers.image.revision"]
    assert not [each for each in image["Config"]["Env"] if SECRET.search(each.partition("=")[0])]
    look = "import shutil, sys; print(*[tool for tool in sys.argv[1:] if shutil.which(tool)])"
    tools = command("docker", "exec", worker.id, "python", "-c", look, *TOOLS).split()
    venv = command("docker", "exec", worker.id, "python", "-c", "import os; print(*os.listdir('/venv/bin'))").split()
    files = "import os; print(*[p for p in ('/root/.cache', '/tmp/.cache', '/srv/.git', '/native') if os.path.exists(p)])"
    assert tools == [] and not [each for each in venv if each.startswith("pip")]
    assert command("docker", "exec", worker.id, "python", "-c", files).strip() == ""
    history = command("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", worker.facts["Image"])
    assert not re.search(r"(?i)(password|token|api_?key)=\S", history)


def test_a_container_without_protection_is_found_out(stack: Stack) -> None:
    """Negative control: the same image started carelessly has every weakness that this test knows to look for."""
    image = stack.containers()[0].facts["Config"]["Image"]
    careless = ("--user", "0", "--pid", "host", "-e", "DB_PASSWORD=x", "-v", "/var/run/docker.sock:/var/run/docker.sock:ro",
                "-p", "127.0.0.2::8000", "--no-healthcheck", "--entrypoint", "sleep")  # fmt: skip
    command("docker", "tag", image, "kronos-fleet-worker:latest")
    name = command("docker", "run", "-d", *careless, "kronos-fleet-worker:latest", "60").strip()
    try:
        found = Container(json.loads(command("docker", "inspect", name))[0])
    finally:
        command("docker", "rm", "-f", name)
        command("docker", "image", "rm", "kronos-fleet-worker:latest")
    assert weaknesses(found.facts) == {
        "runs as root", "writable root", "capabilities", "new privileges", "no pids limit", "no memory limit",
        "published beyond this host", "engine's socket", "host's namespaces", "no restart", "log without end", "no health check",
        "floating tag", "secret in the environment",
    }  # fmt: skip
