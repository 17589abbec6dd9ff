"""Convert records to and from JSON. Wire field names are defined here and in ``models``. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State, StateEvent, Summary, rfc3339, state_from_fields
from celery_statemanager.plan import Plan
from celery_statemanager.records import (
    LATCHES,
    Cancellation,
    Cell,
    Claim,
    Delivery,
    Flow,
    Generation,
    JobRecord,
    Latch,
    OutboxState,
    Place,
    Policy,
    Returned,
    Stall,
    is_latch,
    to_datetime,
)


def state_of(job_id: str, tag: str, task_index: int, cell: Cell) -> State:
    """Return the state that a stored cell represents."""
    return state_from_fields(
        job_id,
        task_index,
        tag,
        cell.status,
        cell.shown_message,
        json.loads(cell.payload) if cell.payload else None,
        to_datetime(cell.timestamp) if cell.version else None,
        cell.version,
        cell.event_id or None,
        cell.attempt,
        cell.schema_version,
        cell.stall.since != 0,
    )


def state_from_wire(wire: Mapping[str, Any]) -> State:
    """Create a state from the JSON object of ``State.as_dict`` or of the Go module. Unknown fields are ignored."""
    stamp = wire.get("timestamp")
    return State(
        wire["jobID"],
        int(wire["taskID"]),
        wire["tag"],
        int(wire["status"]),
        wire.get("message"),
        wire.get("payload"),
        from_rfc3339(stamp) if stamp else None,
        int(wire.get("version", 0)),
        wire.get("eventID"),
        int(wire.get("attempt", 0)),
        int(wire.get("schemaVersion", 1)),
        bool(wire.get("stalled")),
    )


def event_to_wire(event: StateEvent) -> dict[str, Any]:
    """Return an event of a subscription as a JSON object."""
    return {**event.state.as_dict(), "replay": event.replay}


def job_to_wire(job: JobRecord) -> dict[str, Any]:
    """Return a job, without its cells, as a JSON object."""
    return {
        "jobID": job.job_id,
        "runToken": job.run_token,
        "numTasks": job.num_tasks,
        "metadata": json.loads(job.metadata or "{}"),
        "deleted": job.tombstoned_at is not None,
        "settled": job.settled,
        "createdAt": moment_to_wire(job.created_at),
        "lastActivity": moment_to_wire(job.last_activity),
        "cancelled": job.cancelled and {"reason": job.cancelled.reason, "at": moment_to_wire(job.cancelled.at)},
        "generation": job.generation.number,
        "deadline": moment_to_wire(job.policy.deadline),
        "schemaVersion": job.schema_version,
    }


def summary_to_wire(summary: Summary) -> dict[str, Any]:
    """Return the part of a summary that ``job_to_wire`` does not contain, as a JSON object without states."""
    return {name: value for name, value in summary.as_dict().items() if name not in {"numTasks", "lowest"}}


def moment_to_wire(microseconds: int | None) -> str | None:
    """Return microseconds since the epoch as RFC 3339 text; None stays None."""
    return None if microseconds is None else rfc3339(to_datetime(microseconds))


def from_rfc3339(text: str) -> datetime:
    """Return the UTC datetime of RFC 3339 text with any offset and precision, truncated to microseconds.

    Raises: ValueError if the text is not a timestamp.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"not a timestamp like '2026-01-31T12:00:00.5Z': {text!r}")
    seconds, fraction, offset = match.groups()
    moment = datetime.fromisoformat(seconds + (offset if offset not in ("Z", "z") else "+00:00"))
    return moment.replace(microsecond=int((fraction or "")[:6].ljust(6, "0"))).astimezone(timezone.utc)


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
"""Groups: date and time, fraction, offset. Python 3.10 reads fractions of three or six digits only; Go writes any."""


def progress_json(done: float, total: float) -> str:
    """Return the JSON text that is stored as ``payload["progress"]``."""
    return compact({"done": done, "total": total})


def compact(value: Any) -> str:
    """Return a value as JSON text without whitespace and without escapes of non-ASCII characters."""
    return _encoder.encode(value)


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Shared, because ``json.dumps`` creates an encoder in each call, which costs more than encoding a short text."""


def plan_to_json(plan: Plan | None) -> str | None:
    """Return a plan as JSON text with compressed rows; None stays None."""
    return None if plan is None else compact([[list(stages), str(rows)] for stages, rows in plan.shapes])


def plan_from_json(text: str | None) -> Plan | None:
    """Create a plan from the text of ``plan_to_json``."""
    if text is None:
        return None
    return Plan(tuple((tuple(stages), IndexSet.parse(rows)) for stages, rows in json.loads(text)))


def control_to_json(job: JobRecord) -> str:
    """Encode the fields of a job that change by compare-and-set, and whether it keeps results, as JSON text."""
    return compact(
        {
            "latches": {name: _latch_to_json(latch) for name, latch in job.latches.items()},
            "cancelled": job.cancelled and [job.cancelled.reason, job.cancelled.at],
            "flow": job.flow and [getattr(job.flow, name) for name in _FLOW_FIELDS],
            **({"metadata": job.metadata} if job.metadata else {}),
            **({"results": job.results} if job.results else {}),
            **({"generation": _generation_to_json(job.generation)} if job.generation.number > 1 else {}),
            **({"policy": [getattr(job.policy, name) for name in _POLICY_FIELDS]} if job.policy != Policy() else {}),
            "tombstonedAt": job.tombstoned_at,
        }
    )


def _latch_to_json(latch: Latch) -> list[Any]:
    published = [latch.callback, latch.decided_at, latch.published_at]
    if latch.is_body:
        return [*published, latch.place, True]
    return published if latch.place is None else [*published, latch.place]


def _latch_from_json(
    callback: str | None = None,
    decided_at: int | None = None,
    published_at: int | None = None,
    place: Any = None,
    is_body: bool = False,
) -> Latch:
    return Latch(callback, decided_at, published_at, None if place is None else Place(*place), is_body)


def _generation_to_json(generation: Generation) -> list[Any]:
    rows_to_reset = str(generation.rows_to_reset)
    return [generation.number, generation.earlier_failures, rows_to_reset, generation.earlier_failed_rows]


def _generation_from_json(number: int = 1, failures: int = 0, to_reset: str = "", failed_rows: int = 0) -> Generation:
    return Generation(number, failures, IndexSet.parse(to_reset), failed_rows)


def control_from_json(text: str) -> dict[str, Any]:
    """Parse the text of ``control_to_json`` into keyword arguments of ``JobRecord``."""
    control = json.loads(text)
    others = [name for name in control["latches"] if name not in LATCHES and is_latch(name)]
    return {
        "metadata": control.get("metadata"),
        "latches": {name: _latch_from_json(*control["latches"].get(name, ())) for name in (*LATCHES, *others)},
        "cancelled": Cancellation(*control["cancelled"]) if control["cancelled"] else None,
        "flow": Flow(*control["flow"]) if control.get("flow") else None,
        "results": control.get("results"),
        "generation": _generation_from_json(*control.get("generation", ())),
        "policy": Policy(*control.get("policy", ())),
        "tombstoned_at": control["tombstonedAt"],
    }


def outbox_to_json(state: OutboxState) -> str:
    """Encode an outbox without the number of claimed rows as JSON text."""
    claims = {name: [str(claim.rows), claim.at, claim.until] for name, claim in state.claims.items()}
    return compact([claims, str(state.returned.begun), str(state.returned.waiting)])


def outbox_from_json(claimed: int, text: str) -> OutboxState:
    """Create an outbox from the text of ``outbox_to_json``."""
    claims, begun, waiting = json.loads(text)
    found = {name: Claim(IndexSet.parse(rows), at, until) for name, (rows, at, until) in claims.items()}
    return OutboxState(claimed, found, Returned(IndexSet.parse(begun), IndexSet.parse(waiting)))


def job_to_fields(job: JobRecord) -> dict[str, Any]:
    """Return a job as a JSON object, for stores that keep text."""
    kept = ("job_id", "run_token", "incarnation", "num_tasks", "created_at", "last_activity", "revision")
    plain = {name: getattr(job, name) for name in (*kept, "schema_version")}
    return {**plain, "plan": plan_to_json(job.plan), "control": control_to_json(job)}


def job_from_fields(values: Mapping[str, Any]) -> JobRecord:
    """Create a job from an object of ``job_to_fields``."""
    plain = {name: value for name, value in values.items() if name not in {"plan", "control"}}
    return JobRecord(**plain, plan=plan_from_json(values["plan"]), **control_from_json(values["control"]))


_POLICY_FIELDS = tuple(field.name for field in fields(Policy))
_FLOW_FIELDS = tuple(field.name for field in fields(Flow))
_CELL_FIELDS = tuple(field.name for field in fields(Cell))


def cell_to_fields(cell: Cell) -> dict[str, Any]:
    """Return a cell as a JSON object, for stores that keep text."""
    return {name: getattr(cell, name) for name in _CELL_FIELDS}


def cell_from_fields(values: Mapping[str, Any]) -> Cell:
    """Create a cell from an object of ``cell_to_fields``. A missing schema is 1, another field its default."""
    tuples = {"delivery": Delivery(*values["delivery"]), "stall": Stall(*values.get("stall", ()))}
    return Cell(**{"schema_version": 1, **values, **tuples})
