"""The OpenAPI description of the routes."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.requests import Request

from celery_statemanager.inspection import MOST_FAILED
from celery_statemanager.overview import Phase
from celery_statemanager.web.cells import CLASSES, MOST_STATES
from celery_statemanager.web.jobs import LONGEST_SEARCH, MOST_GROUPED, MOST_JOBS
from celery_statemanager.web.site import Site
from celery_statemanager.web.wire import JSON

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_OPTIONAL: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PERCENT: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 100}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_COUNTS = dict.fromkeys(("expected", "notStarted", "running", "finished", "failed", "notRun", "stalled"), _COUNT)
_SUMMARY = {
    "numTasks": _COUNT,
    "status": {"type": "integer"},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "percent": _PERCENT,
    **_COUNTS,
    "generation": {"type": "integer", "minimum": 1},
    "failedRows": _COUNT,
    "maxFailed": {"type": ["integer", "null"]},
}
_JOB = {
    "jobID": _TEXT,
    "runToken": _OPTIONAL,
    "metadata": {"type": "object"},
    "phase": {"enum": [each.value for each in Phase]},
    "settled": {"type": "boolean"},
    "createdAt": _TEXT,
    "lastActivity": _OPTIONAL,
    "deadline": _OPTIONAL,
    "cancelled": {"anyOf": [_object({"reason": _OPTIONAL, "at": _OPTIONAL}), {"type": "null"}]},
    **_SUMMARY,
}
_STATE = {
    "jobID": _TEXT,
    "tag": _TEXT,
    "taskID": _COUNT,
    "taskIndex": _COUNT,
    "version": _COUNT,
    "status": {"type": "integer"},
    "statusName": _TEXT,
    "percent": _PERCENT,
    "terminal": {"type": "boolean"},
    "stalled": {"type": "boolean"},
    "message": _OPTIONAL,
    "payload": {"type": "object"},
    "timestamp": _OPTIONAL,
    "eventID": _OPTIONAL,
    "attempt": _COUNT,
}
_CALLBACK = {"task": _OPTIONAL, "decidedAt": _OPTIONAL, "publishedAt": _OPTIONAL, "state": {"type": ["object", "null"]}}
_FAILURE = {
    "tag": _TEXT,
    "status": {"type": "integer"},
    "statusName": _TEXT,
    "message": _OPTIONAL,
    "count": _COUNT,
    "taskIDs": _TEXT,
    "notRun": _map(_TEXT),
    "notRunCount": _COUNT,
}
_DETAILS = {
    "tags": _map(_object(_SUMMARY)),
    "tagOrder": _list(_TEXT),
    "callbacks": _map(_object(_CALLBACK)),
    "failures": _list(_object(_FAILURE)),
    "otherFailed": _COUNT,
    "otherNotRun": _COUNT,
    "outbox": {"type": ["object", "null"]},
    "actions": _list({"enum": ["cancel", "pause", "rerun"]}),
}
_RUN = {"type": "array", "items": {"anyOf": [{"enum": [*CLASSES]}, _COUNT]}, "minItems": 3, "maxItems": 3}
_GRID = {"rows": _COUNT, "runs": _list(_RUN)}
_REASON = {"tag": _TEXT, "taskIDs": _OPTIONAL, "code": _TEXT, "text": _TEXT}
SCHEMAS = {
    "Job": _object(_JOB),
    "JobDetails": _object({**_JOB, **_DETAILS}),
    "Jobs": _object({"jobs": _list(_ref("Job")), "cursor": _OPTIONAL}),
    "State": _object(_STATE, optional=("payload",)),
    "States": _object({"states": _list(_ref("State")), "cursor": _OPTIONAL}),
    "Grid": _object({"generation": {"type": "integer"}, "tags": _map(_object(_GRID))}),
    "Reasons": _object({"reasons": _list(_object(_REASON)), "settled": {"type": "boolean"}}),
    "Error": _object({"error": _object({"code": _TEXT, "message": _TEXT})}),
}


def _parameter(name: str, schema: Schema, text: str, where: str = "query") -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


_JOB_ID = [
    _parameter("job_id", {"type": "string", "minLength": 1, "maxLength": 200}, "One percent-encoded segment.", "path"),
    _parameter("run_token", {"type": "string", "minLength": 1, "maxLength": 200}, "The run token, if the job has one."),
]
_TAG = _parameter("tag", {"type": "string", "minLength": 1, "maxLength": 200}, "Only this tag.")
_CURSOR = _parameter("cursor", _TEXT, "The cursor of the previous page.")


def _limit(default: int, most: int) -> Schema:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return _parameter("limit", schema, "Maximum number of entries in a page.")


def _route(text: str, parameters: list[Schema], content: Schema, *others: int) -> Schema:
    codes = sorted({400, 403, 404, 503, *others} - (set() if "job_id" in str(parameters) else {404}))
    errors = {str(code): {"description": "An error.", "content": _json(_ref("Error"))} for code in codes}
    return {
        "summary": text,
        "parameters": parameters,
        "responses": {"200": {"description": "Success.", "content": content}, **errors},
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _post(text: str, field: str, kind: str, result: dict[str, Schema]) -> Schema:
    header = _parameter("X-Requested-With", _TEXT, "Any value. Forms of other sites cannot send it.", "header")
    header["required"] = True
    schema = {"type": "object", "properties": {field: {"type": kind}} if field else {}, "additionalProperties": False}
    body = {"required": False, "content": _json(schema)}
    return {**_route(text, [*_JOB_ID, header], _json(_object(result)), 408, 409, 413), "requestBody": body}


def _paths() -> dict[str, Schema]:
    jobs = [
        _parameter("text", {"type": "string", "maxLength": LONGEST_SEARCH}, "Part of id, run token, owner or title."),
        _parameter("phase", {"enum": [each.value for each in Phase]}, "Only jobs in this phase."),
    ]
    states = [
        _TAG,
        _parameter("class", {"enum": [*CLASSES, "stalled"]}, "Only cells of this class."),
        _parameter("task_index", _COUNT, "Only the cells of this row."),
        _limit(100, MOST_STATES),
        _CURSOR,
    ]
    events = [
        _parameter("view", {"enum": ["cells", "summary"], "default": "summary"}, "Changes of cells, or counts."),
        _parameter("since", _TEXT, "The id of an event. The header Last-Event-ID takes precedence."),
    ]
    grouped = {"type": "integer", "minimum": 1, "maximum": MOST_GROUPED, "default": MOST_FAILED}
    failures = _parameter("failures", grouped, "Number of failed cells that are grouped by cause.")
    stream = _route(
        "Follow a job as server-sent events.", [*_JOB_ID, *events], {"text/event-stream": {"schema": _TEXT}}
    )
    stream["responses"]["204"] = {"description": "The client has received all events of the current generation."}
    flag: Schema = {"type": "boolean"}
    report = {"rows": _TEXT, "skipped": _TEXT, "count": _COUNT}
    one = "/api/jobs/{job_id}"
    reading = {
        "/api/jobs": _route("List jobs.", [*jobs, _limit(50, MOST_JOBS), _CURSOR], _json(_ref("Jobs"))),
        one: _route("Show one job.", [*_JOB_ID, failures], _json(_ref("JobDetails"))),
        f"{one}/states": _route("List cells.", [*_JOB_ID, *states], _json(_ref("States"))),
        f"{one}/grid": _route("Show the class of each cell.", [*_JOB_ID, _TAG], _json(_ref("Grid"))),
        f"{one}/why": _route("Explain why a job has not settled.", _JOB_ID, _json(_ref("Reasons"))),
        f"{one}/events": stream,
    }
    changing = {
        f"{one}/cancel": _post("Cancel a job.", "reason", "string", {"cancelled": flag}),
        f"{one}/pause": _post("Hold back the rows that have not begun.", "reason", "string", {"paused": flag}),
        f"{one}/resume": _post("Resume a job: publish the rows that were held back.", "", "string", {"resumed": flag}),
        f"{one}/rerun": _post("Rerun rows that have failed.", "which", "string", report),
    }
    return {path: {"get": each} for path, each in reading.items()} | {
        path: {"post": each} for path, each in changing.items()
    }


PATHS = _paths()


async def describe(_: Site, request: Request) -> JSON:
    """Return the description. It contains no data of jobs, so access is not checked."""
    return JSON(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Jobs of celery-statemanager",
                "version": "1",
                "description": "Pass the token of a link as the parameter token or as a bearer token.",
            },
            "servers": [{"url": quote(request.scope["mount"]) or "/"}],
            "paths": PATHS,
            "components": {"schemas": SCHEMAS},
        }
    )
