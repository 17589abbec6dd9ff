"""How records are spelt outside Python. The only place that knows wire field names. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State, StateEvent, Summary, state_from_fields
from celery_statemanager.plan import Plan
from celery_statemanager.records import LATCHES, Cancellation, Cell, JobRecord, Latch, Submission, to_datetime


def state_of(job_id: str, tag: str, task_index: int, cell: Cell) -> State:
    """Give a stored cell as the state that readers see."""
    return state_from_fields(
        job_id,
        task_index,
        tag,
        cell.status,
        cell.message,
        json.loads(cell.payload) if cell.payload else None,
        to_datetime(cell.timestamp) if cell.version else None,
        cell.version,
        cell.event_id or None,
        cell.attempt,
        cell.schema_version,
    )


def state_to_wire(state: State) -> dict[str, Any]:
    """Give a state as the JSON object that readers in any language understand."""
    wire: dict[str, Any] = {
        "jobID": state.job_id,
        "tag": state.tag,
        "taskID": state.task_index,
        "version": state.version,
        "status": int(state.status),
        "message": state.message,
        "timestamp": None if state.timestamp is None else rfc3339(state.timestamp),
        "eventID": state.event_id,
        "attempt": state.attempt,
        "schemaVersion": state.schema_version,
    }
    if state.payload is not None:
        wire["payload"] = dict(state.payload)
    return wire


def state_from_wire(wire: Mapping[str, Any]) -> State:
    """Read what ``state_to_wire`` wrote, or what the Go module wrote: unknown fields are passed over."""
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
    )


def event_to_wire(event: StateEvent) -> dict[str, Any]:
    """Give a delivery of a subscription as a JSON object."""
    return {**state_to_wire(event.state), "replay": event.replay}


def job_to_wire(job: JobRecord) -> dict[str, Any]:
    """Give a job without its cells as a JSON object."""
    return {
        "jobID": job.job_id,
        "runToken": job.run_token,
        "numTasks": job.num_tasks,
        "deleted": job.tombstoned_at is not None,
        "settled": job.settled,
        "createdAt": moment_to_wire(job.created_at),
        "lastActivity": moment_to_wire(job.last_activity),
        "cancelled": job.cancelled and {"reason": job.cancelled.reason, "at": moment_to_wire(job.cancelled.at)},
        "schemaVersion": job.schema_version,
    }


def summary_to_wire(summary: Summary) -> dict[str, Any]:
    """Give a summary as a JSON object; index sets are compressed (``"3,17-20"``) and left out where not asked for."""
    sets = {
        "failedIDs": summary.failed_indexes,
        "runningIDs": summary.running_indexes,
        "missingIDs": summary.missing_indexes,
        "notRunIDs": summary.not_run_indexes,
    }
    return {
        "status": int(summary.lowest.status),
        "fraction": round(summary.fraction, 6),
        "expected": summary.expected,
        "notStarted": summary.not_started,
        "running": summary.running,
        "finished": summary.finished,
        "failed": summary.failed,
        "notRun": summary.not_run,
        **{name: str(rows) for name, rows in sets.items() if rows is not None},
    }


def moment_to_wire(microseconds: int | None) -> str | None:
    """Give a record's time as text; None stays None."""
    return None if microseconds is None else rfc3339(to_datetime(microseconds))


def rfc3339(moment: datetime) -> str:
    """Give an aware datetime in UTC with microseconds and ``Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_rfc3339(text: str) -> datetime:
    """Read a moment in any offset and of any precision, as Go writes it, to the microsecond. Raises: ValueError."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a moment like '2026-01-31T12:00:00.5Z': {text!r}")
    seconds, fraction, offset = found.groups()
    moment = datetime.fromisoformat(seconds + (offset if offset not in ("Z", "z") else "+00:00"))
    return moment.replace(microsecond=int((fraction or "")[:6].ljust(6, "0"))).astimezone(timezone.utc)


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
"""Seconds, fraction, offset. Python 3.10 reads three digits or six of a fraction, and Go writes what it needs."""


def compact(value: Any) -> str:
    """Give JSON text without blanks, non-ASCII as it is."""
    return _encoder.encode(value)


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: ``json.dumps`` makes one at each call, which takes longer than a short text."""


def plan_to_json(plan: Plan | None) -> str | None:
    """Give a plan as JSON text; rows compressed."""
    return None if plan is None else compact([[list(stages), str(rows)] for stages, rows in plan.shapes])


def plan_from_json(text: str | None) -> Plan | None:
    """Read what ``plan_to_json`` wrote."""
    if text is None:
        return None
    return Plan(tuple((tuple(stages), IndexSet.parse(rows)) for stages, rows in json.loads(text)))


def control_to_json(job: JobRecord) -> str:
    """Give the parts of a job that change by compare-and-set as JSON text."""
    return compact(
        {
            "latches": {
                name: [latch.callback, latch.decided_at, latch.published_at] for name, latch in job.latches.items()
            },
            "cancelled": job.cancelled and [job.cancelled.reason, job.cancelled.at],
            "submission": job.submission
            and [job.submission.published, job.submission.done, job.submission.alive_until],
            "tombstonedAt": job.tombstoned_at,
        }
    )


def control_from_json(text: str) -> dict[str, Any]:
    """Read what ``control_to_json`` wrote, as keyword arguments of ``JobRecord``."""
    control = json.loads(text)
    return {
        "latches": {name: Latch(*control["latches"].get(name, ())) for name in LATCHES},
        "cancelled": Cancellation(*control["cancelled"]) if control["cancelled"] else None,
        "submission": Submission(*control["submission"]) if control["submission"] else None,
        "tombstoned_at": control["tombstonedAt"],
    }
