"""The two ways to open the fleet that README describes: TLS at the door, and the door of a second host."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.fleet import bodies
from fleet.forecast import ROUTE
from tests.fleet.live import free_ports
from tests.stack.stack import ROOT, Stack, command, wait_until

NGINX_USER = 101
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A folder as README asks for: self-signed, the key readable by nginx's user alone."""
    if not Path("/usr/bin/openssl").exists():
        pytest.skip("there is no openssl to make a certificate with")
    key, chain = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", key, "-out", chain, *subject], check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o400)
    command("chown", str(NGINX_USER), str(key))
    tmp_path.chmod(0o755)
    return tmp_path


def test_tls_at_the_door(stack: Stack, certificate: Path) -> None:
    """With the second compose file the same forecast comes encrypted, verified against the certificate; HTTP/2 is offered."""
    port = free_ports()
    stack.env = {"TLS": str(certificate), "TLS_ADDRESS": "127.0.0.1", "TLS_PORT": str(port)}
    trust = ssl.create_default_context(cafile=certificate / "fullchain.pem")
    body = bodies(lookback=64, horizon=4, different=1)[0]
    try:
        stack.compose("-f", str(ROOT / "docker-compose.tls.yml"), "up", "-d", "--no-build", "--wait", "nginx")
        with httpx.Client(verify=trust) as client:
            encrypted = client.post(f"https://localhost:{port}{ROUTE}", content=body, headers=JSON).json()
        assert encrypted["prediction"] == json.loads(stack.ask("POST", ROUTE, body).body)["prediction"]
        trust.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", port)) as plain, trust.wrap_socket(plain, server_hostname="localhost") as tls:
            assert tls.selected_alpn_protocol() == "h2"
    finally:
        stack.env = {}
        stack.compose("up", "-d", "--no-build", "--wait", "nginx")


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[Stack]:
    """Another fleet, whose door other machines reach; here: the containers of the first."""
    found = Stack(f"{stack.project}-second", free_ports(), tmp_path)
    network = f"{stack.project}_default"
    gateway = command("docker", "network", "inspect", network, "-f", "{{(index .IPAM.Config 0).Gateway}}").strip()
    assert gateway, f"{network} has no gateway"
    found.env = {"PUBLISH_ADDRESS": gateway}
    try:
        found.edit_replicas(1)
        found.compose("up", "-d", "--no-build", "--wait", "worker", "nginx")
        yield found
    finally:
        found.down()


def test_a_second_host_takes_its_share(stack: Stack, second: Stack) -> None:
    """One line in nginx/hosts and a reload: forecasts come from both; when the other host dies, none fails."""
    requests = stack.requests()
    own = {container.host_name for container in stack.containers()}
    hosts = stack.folder / "hosts"
    hosts.mkdir(exist_ok=True)
    override = stack.folder / "hosts.yml"
    override.write_text(f"services: {{ nginx: {{ volumes: ['{hosts}:/etc/nginx/hosts:ro'] }} }}\n")
    try:
        stack.compose("-f", str(override), "up", "-d", "--no-build", "--wait", "nginx")
        door = f"{second.env['PUBLISH_ADDRESS']}:{second.port}"
        (hosts / "second.conf").write_text(f"server {door} weight=1 max_fails=1 fail_timeout=2s;\n")
        with stack.load(requests) as traffic:
            stack.compose("kill", "-s", "HUP", "nginx")
            time.sleep(12)  # the first 5 s belong to the old list: open connections are kept so long (keepalive_min_timeout)
            second.compose("kill", "worker")
            time.sleep(5)
        others = sum(share for name, share in traffic.shares().items() if name not in own)
        assert traffic.failures == []
        assert others > 0.02, traffic.shares()
        wait_until(lambda: stack.ask("GET", "/readyz").status == 200, 10)
    finally:
        stack.compose("up", "-d", "--no-build", "--wait", "nginx")
