"""nginx/containers/tls.conf: the door with TLS. Real nginx, a certificate of the test's own."""

from __future__ import annotations

import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nginx_rig import FOLDER, Rig, free_port, rig

SUBJECT = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with fullchain.pem and privkey.pem."""
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*made, *files, *SUBJECT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[tuple[Rig, int]]:
    port = free_port()
    places = {"listen 8443": f"listen 127.0.0.1:{port}", "/etc/nginx/tls": str(certificate)}
    more = {"tls.conf": FOLDER / "containers" / "tls.conf"}
    with rig(tmp_path_factory.mktemp("door") / "nginx", count=1, changes=places, more=more) as found:
        yield found, port


def client(certificate: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Trusts the certificate, speaks one version, would rather speak HTTP/2."""
    context = ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))
    with warnings.catch_warnings(action="ignore"):  # the old versions are what is refused here
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def connect(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
    except BaseException:
        plain.close()
        raise


def test_a_request_over_tls_is_forwarded_as_https(door: tuple[Rig, int], certificate: Path) -> None:
    """The worker learns how the client came; HTTP/2 is offered; the plain port serves on, for the health check."""
    front, port = door
    context = client(certificate, ssl.TLSVersion.TLSv1_3)
    with connect(port, context) as offered:
        assert offered.selected_alpn_protocol() == "h2"
    context.set_alpn_protocols(["http/1.1"])
    with connect(port, context) as secure:
        secure.sendall(b"GET /secure HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert secure.recv(65536).startswith(b"HTTP/1.1 200")
    assert front.workers.asked[-1].headers["x-forwarded-proto"] == "https"
    assert front.raw(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_old_protocols_are_refused(door: tuple[Rig, int], certificate: Path) -> None:
    """ssl_protocols: TLS 1.2 is spoken, 1.1 is not."""
    _, port = door
    with connect(port, client(certificate, ssl.TLSVersion.TLSv1_2)) as secure:
        assert secure.version() == "TLSv1.2"
    with pytest.raises((ssl.SSLError, OSError)):
        connect(port, client(certificate, ssl.TLSVersion.TLSv1_1)).close()


def test_a_client_that_comes_again_is_known(door: tuple[Rig, int], certificate: Path) -> None:
    """ssl_session_cache and ssl_session_timeout: whichever process it meets, the second handshake is the short one."""
    _, port = door
    context = client(certificate, ssl.TLSVersion.TLSv1_2)
    with connect(port, context) as first:
        assert first.session is not None and first.session.ticket_lifetime_hint == 3600
    context.options |= ssl.OP_NO_TICKET  # what the client holds is only a number: nginx has to remember
    with connect(port, context) as first:
        session = first.session
    assert session is not None and not session.has_ticket
    for _ in range(6):
        with connect(port, context, session) as again:
            assert again.session_reused
