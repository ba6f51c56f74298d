"""``python -m app.probe PATH``: what this container's worker answers there; the health check, and how the fleet looks inside.

Knows: one GET to the own port. Does not know: settings; it runs every few seconds, and reading them would cost more
than the question.
"""

from __future__ import annotations

import http.client
import os
import sys
from typing import Final

DEFAULT_BIND: Final = "0.0.0.0:8000"
TIMEOUT_S: Final = 2.0


def ask(path: str, bind: str) -> tuple[bool, bytes]:
    """Whether the answer is 200, and its body; or the reason why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", int(bind.rpartition(":")[2]), timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == http.client.OK, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer: {error}\n".encode()
    finally:
        connection.close()


if __name__ == "__main__":
    well, said = ask(sys.argv[1], os.environ.get("KRONOS_BIND", DEFAULT_BIND))
    sys.stdout.buffer.write(said)
    sys.exit(not well)
