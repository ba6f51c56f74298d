"""The routes of jobs, as the OpenAPI document tells them.

Knows: how the contract is told. Does not know: how it is kept; tests compare the two.
"""

from __future__ import annotations

from typing import Final

from app.api.openapi_parts import Json, any_of, responses
from app.settings import Settings

SUBMIT_KINDS: Final = (
    "bad-json", "body-timeout", "too-large", "unsupported-media-type", "invalid-input", "work-too-large", "key-reused",
    "overloaded", "engine-failed", "not-ready", "jobs-off", "jobs-unavailable",
)  # fmt: skip
READ_KINDS: Final = ("not-found", "invalid-input", "engine-failed", "jobs-off", "jobs-unavailable")
CANCEL_KINDS: Final = ("not-found", "engine-failed", "jobs-off", "jobs-unavailable")
TEXT: Final = {"type": "string"}

ABOUT: Final = """
The body is that of a prediction and is refused as there, before anything is kept. With `items` it is a batch; with
`"kind": "embedding"` it asks for embeddings. More members, all optional: `priority` (default `bulk`: waits for, and is
paused by, interactive work), `timeout` (seconds of one attempt, ≤ {timeout:g}), `ttl` (seconds to the job's end, and then
again for its result, ≤ {ttl:g}), `webhook` (called when the job has ended). A job whose worker dies begins again elsewhere, at
most {attempts} times. Without a `seed` each attempt draws its own.
"""


def job_examples(series: Json) -> dict[str, Json]:
    """Jobs that succeed as they are, by name."""
    forecast = series | {"overrides": {"pred_len": 4, "seed": 7}}
    return {
        "forecast": forecast | {"ttl": 3600},
        "batch": {"items": [forecast, forecast | {"quantiles": [0.5]}], "priority": "bulk"},
        "embedding": {"kind": "embedding", **series},
    }


def job_paths(settings: Settings, series: Json) -> Json:
    """The paths of jobs; ``series`` is an example."""
    said = ABOUT.format(timeout=settings.jobs_timeout, ttl=settings.jobs_ttl, attempts=settings.jobs_attempts)
    shown = {name: {"value": value} for name, value in job_examples(series).items()}
    takes = any_of(["ForecastJob", "ForecastBatchJob", "EmbedJob", "EmbedBatchJob"])
    submit = _operation("submit_job", "Ask for a prediction, to be fetched later", SUBMIT_KINDS, {
        "202": "Kept, and to be run", "200": "This Idempotency-Key is known: the job as it stands",
    }) | {
        "description": said,
        "requestBody": {"required": True, "content": {"application/json": {"schema": takes, "examples": shown}}},
    }  # fmt: skip
    submit["parameters"] = [
        _parameter("Idempotency-Key", "header", {"type": "string", "pattern": '^"?[!#-~]{1,255}"?$'},
                   "The same key and body: the same job. The same key and another body: 422."),
        _parameter("X-Priority", "header", {"type": "string", "enum": ["interactive", "bulk"]}, "bulk: whatever the body says"),
    ]  # fmt: skip
    task = _parameter("task_id", "path", TEXT, "As submission told it; nobody can guess one") | {"required": True}
    longest: Json = {"type": "number", "minimum": 0, "maximum": settings.inference_timeout}
    show = _operation("show_job", "A job as it stands, with its result", READ_KINDS, {"200": "It is here"})
    show["parameters"] = [task, _parameter("wait", "query", longest, "Seconds to wait for its end")]
    cancel = _operation("cancel_job", "Stop a job", CANCEL_KINDS, {
        "200": "It has ended, now or before", "202": "Its worker will stop it within about a second",
    })  # fmt: skip
    cancel["parameters"] = [task]
    return {"/v1/jobs": {"post": submit}, "/v1/jobs/{task_id}": {"get": show, "delete": cancel}}


def _operation(name: str, summary: str, kinds: tuple[str, ...], answers: dict[str, str]) -> Json:
    found = responses("application/json", any_of(["JobDoc"]), kinds)
    done = found.pop("200")
    for status, text in answers.items():
        found[status] = done | {"description": text}
        if status == "202":
            found[status]["headers"] = done["headers"] | {"Location": {"description": "Of the job", "schema": TEXT}}
    return {"operationId": name, "summary": summary, "tags": ["jobs"], "responses": found}


def _parameter(name: str, place: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": text}
