"""Pieces that every operation in the OpenAPI document is made of.

Knows: the error table, the headers of every answer. Does not know: any route.
"""

from __future__ import annotations

from typing import Any, Final

from app.api.schema import REFERENCE
from app.errors import ERROR_TABLE, PROBLEM_MEDIA_TYPE

COME_BACK: Final = (429, 503)

Json = dict[str, Any]


def any_of(names: list[str]) -> Json:
    """The schema of one of these documents."""
    references = [{"$ref": REFERENCE.format(name=name)} for name in names]
    return references[0] if len(references) == 1 else {"anyOf": references}


def responses(media_type: str, content: Json, kinds: tuple[str, ...]) -> Json:
    """The answer 200 with ``content``, and the errors of ``kinds``."""
    done = {"description": "Done", "headers": _headers(200), "content": {media_type: {"schema": content}}}
    return {"200": done} | problems(kinds)


def problems(kinds: tuple[str, ...]) -> Json:
    """The errors of ``kinds``, by status."""
    found: Json = {}
    for status in sorted({ERROR_TABLE[kind].status for kind in kinds}):
        rows = [ERROR_TABLE[kind] for kind in kinds if ERROR_TABLE[kind].status == status]
        found[str(status)] = {
            "description": "; ".join(f"{row.title}: {row.when}" for row in rows),
            "headers": _headers(status),
            "content": {PROBLEM_MEDIA_TYPE: {"schema": any_of(["Problem"])}},
        }
    return found


def _headers(status: int) -> Json:
    texts = {
        "X-Request-ID": "As sent, or made here",
        "X-Served-By": "The worker that answered",
        "Server-Timing": "Milliseconds of each stage",
    }
    headers: Json = {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}
    if status in COME_BACK:
        headers["Retry-After"] = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
    return headers
