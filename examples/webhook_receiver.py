"""A receiver of webhooks: tells a real one from a forged, a changed or an old one. Standard library only.

    python examples/webhook_receiver.py 9000 SECRET

Then the service needs KRONOS_WEBHOOK_TARGETS=http://127.0.0.1:9000 and KRONOS_WEBHOOK_SECRETS=SECRET.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

TOLERANCE_S = 300
"""How old a webhook may be; a copy that somebody sends again later is refused."""


def is_genuine(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Whether who sent this knows the secret, and sent it just now. ``body``: the bytes as they came, before any parsing."""
    timestamp = headers.get("X-Kronos-Timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and abs(time.time() - int(timestamp)) <= TOLERANCE_S):
        return False
    expected = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    # one signature for each secret of the service; compared in a time that tells nothing about how much of it is right
    signatures = headers.get("X-Kronos-Signature", "").split(",")
    return any(hmac.compare_digest(f"v1={expected}".encode(), signature.encode()) for signature in signatures)


class Receiver(BaseHTTPRequestHandler):
    """Answers at once and works later: the service waits a few seconds only, and calls again after anything but 2xx."""

    secret = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        genuine = is_genuine(dict(self.headers), body, self.secret)
        self.send_response(204 if genuine else 401)
        self.end_headers()
        if genuine:  # the same task may come more than once
            job = json.loads(body)
            print(job["task_id"], job["state"], flush=True)


if __name__ == "__main__":
    Receiver.secret = sys.argv[2]
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
