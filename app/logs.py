"""Structured logging: one JSON object a line on standard output, through stdlib logging.

Knows: the shape of a line. Does not know: what is worth a line. Request and answer bodies never come here.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

CONTEXT = "context"


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", **context, "exception"?}``.

    The context is what the caller passes as ``extra={"context": {...}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, CONTEXT, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def dict_config(level: str) -> dict[str, Any]:
    """A ``logging.config.dictConfig`` that sends everything, uvicorn and gunicorn included, to one handler."""
    through = {"handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "app.logs.JsonFormatter"}},
        "handlers": {"out": {"class": "app.outlet.Outlet", "formatter": "json", "stream": "ext://sys.stdout"}},
        "root": {"level": level.upper(), "handlers": ["out"]},
        "loggers": {name: dict(through) for name in ("gunicorn.error", "gunicorn.access", "uvicorn", "uvicorn.error")}
        | {"uvicorn.access": {"handlers": [], "propagate": False}},
    }


def context(**fields: Any) -> dict[str, Any]:
    """The ``extra`` argument of a logging call that puts ``fields`` into the line."""
    return {"extra": {CONTEXT: fields}}
