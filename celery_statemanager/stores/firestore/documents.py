"""Jobs and cells as documents, with the field names of the Go module and our own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from celery_statemanager.codec import control_from_json, control_to_json, plan_from_json, plan_to_json
from celery_statemanager.models import FINISHED
from celery_statemanager.records import Cell, Delivery, JobRecord, JobRef, Stall
from celery_statemanager.stores.fields import check_cells
from celery_statemanager.stores.firestore.values import Moment, payload_fields, payload_of
from celery_statemanager.stores.recount import is_counted
from celery_statemanager.transitions import tally_of

INDEX_FIELDS = ("column", "waiting", "fraction", "held", "notRun")
"""Fields of a cell that exist only in some classes. Queries filter by all except the last."""

MAX_OPERATIONS = 32
"""Operations that a document stores, so that one whose answer was lost is recognised after as many later ones."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class CellDocument:
    """A cell's document as this process last read or wrote it.

    Attributes:
        update_time: the precondition of the next write; None if the document does not exist.
        operations: the last operations that wrote it, oldest first.
        counted: whether the job's tallies include it. They do not if another program wrote it.
        counted_as_failed: whether the tallies count this blocked cell as failed, as releases without
            ``Tally.not_run`` do.
    """

    cell: Cell | None = None
    update_time: Any = None
    operations: list[str] = field(default_factory=list)
    counted: bool = True
    counted_as_failed: bool = False

    def as_counted(self) -> Cell | None:
        """Return the cell as the job's tallies count it, or None if they do not."""
        if not self.counted:
            return None
        return replace(self.cell, blocked_by=None) if self.cell and self.counted_as_failed else self.cell


@dataclass
class JobDocument:
    """A job's document as this process last read or wrote it.

    Attributes:
        cached_at: the local monotonic time of that.
    """

    job: JobRecord
    update_time: Any
    operations: list[str]
    cached_at: float = 0.0

    @property
    def foreign(self) -> bool:
        """Whether another program created the job. Such a job has neither an incarnation nor tallies."""
        return not self.job.incarnation


def job_fields(job: JobRecord, operations: list[str], check_after: int) -> dict[str, Any]:
    """Encode a job.

    Args:
        check_after: when a sweep checks the latches, while they may be undecided.
    """
    fields = {
        "jobID": job.job_id,
        "numTasks": job.num_tasks,
        "deleted": job.tombstoned_at is not None,
        "schemaVersion": job.schema_version,
        "runToken": job.run_token,
        "incarnation": job.incarnation,
        "plan": plan_to_json(job.plan),
        "control": control_to_json(job),
        "due": job.due,
        "settled": job.settled,
        "createdAt": Moment(job.created_at),
        "lastActivity": Moment(job.last_activity),
        "revision": job.revision,
        "operations": operations[-MAX_OPERATIONS:],
    }
    if job.plan is not None and not job.settled:
        fields["checkAfter"] = Moment(check_after)
    if not job.incarnation:  # another program's job, whose times are unknown
        for unknown in ("incarnation", "createdAt", "lastActivity"):
            del fields[unknown]
    return fields


def job_of(fields: Mapping[str, Any], key_id: str) -> JobRecord | None:
    """Decode a job of this package or of the Go module. Return None if the document is not a job."""
    if not isinstance(fields.get("numTasks"), int):
        return None
    control: dict[str, Any] = control_from_json(fields["control"]) if fields.get("control") else {}
    if fields.get("deleted") and control.get("tombstoned_at") is None:
        control["tombstoned_at"] = int(fields.get("deletedAt") or fields.get("lastActivity") or 0)
    if not fields.get("deleted"):
        control["tombstoned_at"] = None
    return JobRecord(
        job_id=str(fields.get("jobID") or key_id),
        run_token=fields.get("runToken"),
        incarnation=fields.get("incarnation") or "",
        num_tasks=fields["numTasks"],
        plan=plan_from_json(fields.get("plan")),
        created_at=int(fields.get("createdAt") or 0),
        last_activity=int(fields.get("lastActivity") or 0),
        revision=int(fields.get("revision") or 0),
        schema_version=int(fields.get("schemaVersion") or 0),
        **control,
    )


def cell_fields(job: JobRecord, tag: str, task_index: int, cell: Cell, *, collection: str) -> dict[str, Any]:
    """Encode a cell, except the times that the server sets: ``timestamp``, and ``beganAt`` of a begin."""
    fields = {
        "jobID": job.job_id,
        "taskID": task_index,
        "tag": tag,
        "status": cell.status,
        "message": cell.message,
        "version": cell.version,
        "eventID": cell.event_id,
        **payload_fields(cell.payload),
        "schemaVersion": cell.schema_version,
        "attempt": cell.attempt,
        "open": cell.open,
        "delivery": list(cell.delivery),
        "owner": cell.owner,
        "losses": cell.losses,
        "kept": cell.kept,
        "blockedBy": cell.blocked_by,
        "generation": cell.generation,
        "failures": cell.failures,
        "runToken": job.run_token,
    }
    if cell.stall.after:
        fields |= {"stallAfter": cell.stall.after}
    if cell.stall.since:
        fields |= {"stalledSince": cell.stall.since, "standsIn": cell.stall.stands_in}
    if job.incarnation:
        fields["incarnation"] = job.incarnation
        if is_counted(job, tag, task_index):
            fields |= _index_fields(job, tag, cell)
        if cell.held:
            fields["held"] = collection
    return fields


def _index_fields(job: JobRecord, tag: str, cell: Cell) -> dict[str, Any]:
    """Return the fields that queries filter by. A field without information is absent, so that no index contains it."""
    fields: dict[str, Any] = {"column": column_of(job.ref, tag)}
    if cell.waiting:
        fields["waiting"] = True
    if 0 < cell.status < FINISHED:
        fields["fraction"] = tally_of(cell).progress
    if tally_of(cell).not_run:
        fields["notRun"] = True
    return fields


def column_of(ref: JobRef, tag: str) -> str:
    """Return the value of ``column`` in all counted cells of one column of one incarnation."""
    return f"{ref.incarnation}:{tag}"


def cell_of(fields: Mapping[str, Any]) -> Cell:
    """Decode a cell of this package or of the Go module."""
    return Cell(
        status=int(fields.get("status") or 0),
        message=fields.get("message"),
        payload=payload_of(fields),
        timestamp=int(fields.get("timestamp") or 0),
        version=int(fields.get("version") or 1),
        event_id=fields.get("eventID") or "",
        attempt=int(fields.get("attempt") or 0),
        open=bool(fields.get("open")),
        delivery=Delivery(*fields.get("delivery") or ()),
        owner=fields.get("owner"),
        losses=int(fields.get("losses") or 0),
        kept=fields.get("kept"),
        blocked_by=fields.get("blockedBy"),
        began_at=int(fields.get("beganAt") or 0),
        schema_version=int(fields.get("schemaVersion") or 1),
        generation=int(fields.get("generation") or 1),
        failures=int(fields.get("failures") or 0),
        stall=Stall(int(fields.get("stallAfter") or 0), int(fields.get("stalledSince") or 0), fields.get("standsIn")),
    )


def cell_in(fields: Mapping[str, Any], job: JobRecord) -> Cell | None:
    """Decode a cell if it belongs to the job. Cells of another program belong to a job until it is migrated."""
    if is_ours(fields, job):
        return cell_of(fields)
    if fields.get("incarnation") or job.schema:
        return None
    return replace(cell_of(fields), schema_version=0)


def counted_as_failed(fields: Mapping[str, Any]) -> bool:
    """Return whether a cell is blocked and its document lacks the mark that it is counted as not run."""
    return fields.get("blockedBy") is not None and not fields.get("notRun")


def is_ours(fields: Mapping[str, Any], job: JobRecord) -> bool:
    """Return whether a document belongs to exactly this incarnation of the job."""
    return (fields.get("incarnation") or "") == job.incarnation


def _round_trip(cell: Cell) -> Cell:
    fields = cell_fields(JobRecord("job", None, "incarnation", 1), "a", 0, cell, collection="jobs")
    return cell_of({**fields, "timestamp": Moment(cell.timestamp), "beganAt": Moment(cell.began_at)})


check_cells("Firestore", __name__, _round_trip)


def remember(cache: dict[K, V], key: K, value: V, limit: int) -> None:
    """Store a value in a cache. If the cache is full, remove the oldest tenth of its entries first."""
    if len(cache) >= limit:
        for old in list(cache)[: limit // 10 + 1]:
            cache.pop(old, None)
    cache[key] = value
