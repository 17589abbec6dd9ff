"""The encoding of job records as the fields of a hash, the job's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from celery_statemanager.codec import control_from_json, control_to_json, plan_from_json, plan_to_json
from celery_statemanager.plan import Plan
from celery_statemanager.records import LATCHES, Cancellation, Flow, JobKey, JobRecord

HEAD = (
    "incarnation",
    "num_tasks",
    "created_at",
    "active_at",
    "revision",
    "schema",
    "control",
    *LATCHES,
    "cancelled_at",
    "reason",
    "tags",
    "sequence",
)
"""The fields of a head that clients read, in order.

``control`` holds the fields that clients replace together, by compare-and-set. The times at which latches were decided
and the cancellation are fields of their own, because scripts set them too; of the times, those of earlier generations
are in ``control``. ``tags`` is
the number of written tags, and ``sequence`` that of the job's newest change. The head also holds ``plan``, which is
read once per incarnation, and fields that only scripts use: ``expected`` cells, ``total`` tally, ``clock_at`` of the
last update, ``runs``, ``earlier_failures``, ``reset_generation``, ``max_failed``, ``earlier_failed_rows``,
``deadline``, and those of the outbox (see lua/returned.lua and lua/claiming.lua).
"""

WITH_PLAN = (*HEAD, "plan")

Head = Sequence[Any]


def record_of(key: JobKey, head: Head, plan: Plan | None) -> JobRecord:
    """Decode a head."""
    fields = dict(zip(HEAD, head))
    control = control_from_json(fields["control"].decode())
    latches = control.pop("latches")
    for name in LATCHES:
        latches[name] = replace(latches[name], decided_at=_number(fields[name]))
    cancelled_at, reason = _number(fields["cancelled_at"]), fields["reason"]
    why = None if reason is None else reason.decode()
    control["cancelled"] = None if cancelled_at is None else Cancellation(why, cancelled_at)
    return JobRecord(
        job_id=key.job_id,
        run_token=key.run_token,
        incarnation=fields["incarnation"].decode(),
        num_tasks=int(fields["num_tasks"]),
        plan=plan,
        latches=latches,
        created_at=int(fields["created_at"]),
        last_activity=int(fields["active_at"]),
        revision=int(fields["revision"]),
        schema_version=int(fields["schema"]),
        **control,
    )


def plan_of(head: Head) -> Plan | None:
    """Decode the plan of a head that was read ``WITH_PLAN``."""
    packed = head[len(HEAD)]
    return None if packed is None else plan_from_json(packed.decode())


def fields_of(job: JobRecord) -> list[str | int]:
    """Return the names and values of a new job's head, without the fields that the server sets."""
    fields: dict[str, str | int | None] = {
        "num_tasks": job.num_tasks,
        "plan": plan_to_json(job.plan),
        "expected": job.plan.expected if job.plan else None,
        "control": control_to_json(job),
        **changes_of(job),
    }
    return [part for name, value in fields.items() if value is not None for part in (name, value)]


def changes_of(job: JobRecord) -> dict[str, str | int | None]:
    """Return the changeable fields that scripts read."""
    return {
        "schema": job.schema_version,
        "cancelled_at": job.cancelled.at if job.cancelled else None,
        "reason": job.cancelled.reason if job.cancelled else None,
        "window": _window(job.flow),
        "paused": 1 if job.flow and job.flow.paused else None,
        "earlier_failures": job.generation.earlier_failures or None,
        "max_failed": job.policy.max_failed,
        "earlier_failed_rows": job.generation.earlier_failed_rows or None,
        "deadline": job.policy.deadline,
        "reset_generation": job.generation.number if job.generation.rows_to_reset else None,
        **{name: job.latches[name].decided_at for name in LATCHES},
    }


def _window(flow: Flow | None) -> str | int | None:
    """Return the maximum number of rows in flight; None for a job without messages."""
    if flow is None:
        return None
    return "none" if flow.max_in_flight is None else flow.max_in_flight


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
