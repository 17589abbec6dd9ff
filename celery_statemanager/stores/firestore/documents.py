"""Jobs and cells as documents: the seed's field names, and our own beside them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from celery_statemanager.codec import control_from_json, control_to_json, plan_from_json, plan_to_json
from celery_statemanager.models import FINISHED, SCHEMA_VERSION
from celery_statemanager.records import Cell, Delivery, JobRecord, JobRef
from celery_statemanager.stores.fields import check_cells
from celery_statemanager.stores.firestore.values import Moment, payload_fields, payload_of
from celery_statemanager.stores.recount import is_counted
from celery_statemanager.transitions import tally_of

INDEX_FIELDS = ("column", "waiting", "fraction", "held", "notRun")
"""Fields that say what a cell counts as: queries find cells by all but the last."""

REMEMBERED = 8
"""How many operations a document remembers, so that one whose answer was lost is known again."""


@dataclass
class CachedJob:
    """A document as this process last saw it.

    Attributes:
        stamp: its update time, the precondition of the next write; None where there is none.
        operations: the last operations that wrote it, oldest first.
        counted: whether its job's tallies hold it; not so what another program wrote.
        counted_as_failed: whether they hold this blocked cell as failed, as releases without ``Tally.not_run`` do.
    """

    cell: Cell | None = None
    stamp: Any = None
    operations: list[str] = field(default_factory=list)
    counted: bool = True
    counted_as_failed: bool = False

    def as_counted(self) -> Cell | None:
        """Return the cell as its job's tallies hold it."""
        if not self.counted:
            return None
        return replace(self.cell, blocked_by=None) if self.cell and self.counted_as_failed else self.cell


@dataclass
class KnownJob:
    """A job's document as this process last saw it; ``at`` is the local monotonic time of that."""

    job: JobRecord
    stamp: Any
    operations: list[str]
    at: float = 0.0

    @property
    def foreign(self) -> bool:
        """Whether another program made it, which keeps neither incarnations nor tallies."""
        return not self.job.incarnation


def job_fields(job: JobRecord, operations: list[str], check_after: int) -> dict[str, Any]:
    """Give a job's document.

    Args:
        check_after: when somebody is to see whether its latches were decided, while they may be open.
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
        "operations": operations[-REMEMBERED:],
    }
    if job.plan is not None and not job.settled:
        fields["checkAfter"] = Moment(check_after)
    if not job.incarnation:  # another program's: leave it its own look, and do not make up times
        for unknown in ("incarnation", "createdAt", "lastActivity"):
            del fields[unknown]
    return fields


def job_of(fields: Mapping[str, Any], key_id: str) -> JobRecord | None:
    """Read a job's document, ours or the Go module's; None if it is no job's."""
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
    """Give a cell's document, but for what the server fills in: ``timestamp``, and ``beganAt`` of a begin."""
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
        "runToken": job.run_token,
    }
    if job.incarnation:
        fields["incarnation"] = job.incarnation
        if is_counted(job, tag, task_index):
            _add_index_fields(fields, job, tag, cell)
        if cell.open and cell.owner is not None:
            fields["held"] = collection
    return fields


def _add_index_fields(fields: dict[str, Any], job: JobRecord, tag: str, cell: Cell) -> None:
    """Add what the queries find cells by; a field is there only while it says something, and costs nothing else."""
    fields["column"] = column_of(job.ref, tag)
    if cell.waiting:
        fields["waiting"] = True
    if 0 < cell.status < FINISHED:
        fields["fraction"] = tally_of(cell).progress
    if tally_of(cell).not_run:
        fields["notRun"] = True


def column_of(ref: JobRef, tag: str) -> str:
    """Give what all counted cells of one column of one incarnation have in common."""
    return f"{ref.incarnation}:{tag}"


def cell_of(fields: Mapping[str, Any]) -> Cell:
    """Read a cell's document, ours or the Go module's."""
    replacements, retries = fields.get("delivery") or (0, 0)
    return Cell(
        status=int(fields.get("status") or 0),
        message=fields.get("message"),
        payload=payload_of(fields),
        timestamp=int(fields.get("timestamp") or 0),
        version=int(fields.get("version") or 1),
        event_id=fields.get("eventID") or "",
        attempt=int(fields.get("attempt") or 0),
        open=bool(fields.get("open")),
        delivery=Delivery(replacements, retries),
        owner=fields.get("owner"),
        losses=int(fields.get("losses") or 0),
        kept=fields.get("kept"),
        blocked_by=fields.get("blockedBy"),
        began_at=int(fields.get("beganAt") or 0),
        schema_version=int(fields.get("schemaVersion", SCHEMA_VERSION)),
    )


def cell_in(fields: Mapping[str, Any], job: JobRecord) -> Cell | None:
    """Read a cell's document if it belongs to the job: what another program wrote does until the job is migrated."""
    if is_ours(fields, job):
        return cell_of(fields)
    if fields.get("incarnation") or job.schema:
        return None
    return replace(cell_of(fields), schema_version=0)


def counted_as_failed(fields: Mapping[str, Any]) -> bool:
    """Return whether a blocked cell's document does not say that it is counted as not run."""
    return fields.get("blockedBy") is not None and not fields.get("notRun")


def is_ours(fields: Mapping[str, Any], job: JobRecord) -> bool:
    """Whether a document names the job's very incarnation."""
    return (fields.get("incarnation") or "") == job.incarnation


def _round_trip(cell: Cell) -> Cell:
    fields = cell_fields(JobRecord("job", None, "incarnation", 1), "a", 0, cell, collection="jobs")
    return cell_of({**fields, "timestamp": Moment(cell.timestamp), "beganAt": Moment(cell.began_at)})


check_cells("Firestore", __name__, _round_trip)

K = TypeVar("K")
V = TypeVar("V")


def remember(memory: dict[K, V], key: K, value: V, most: int) -> None:
    """Keep a value; when there are too many, forget the tenth that came first."""
    if len(memory) >= most:
        for old in list(memory)[: most // 10 + 1]:
            memory.pop(old, None)
    memory[key] = value
