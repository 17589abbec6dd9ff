"""The rows of a job as JSON objects: what each was submitted with, and how it has ended."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from enum import Enum
from sys import intern
from typing import Any, NamedTuple

from celery import Celery

from celery_statemanager.aggregate import missing_state
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.integration.outbox.member import Member, read_members
from celery_statemanager.integration.outbox.values import Unavailable
from celery_statemanager.integration.submission.results import read_results
from celery_statemanager.models import FINISHED, Scope, status_name
from celery_statemanager.records import JobRecord
from celery_statemanager.stores import FullStore
from celery_statemanager.texts import to_text


class Rows(Enum):
    """Which rows of a job are exported."""

    ALL = "all"
    FINISHED = "finished"
    FAILED = "failed"


class _Cell(NamedTuple):
    status: int
    message: str | None
    attempt: int


class _Outcome(NamedTuple):
    """The stage that decides about a row, the first one that has not finished or the last one; and all its attempts."""

    tag: str
    cell: _Cell
    attempts: int


def export_rows(app: Celery, store: FullStore, job: JobRecord, which: Rows) -> Iterator[dict[str, Any]]:
    """Yield a JSON object for each row, in row order. The memory grows with the number of states, not with the results.

    Raises: ContentDisallowed – the arguments of a row have a format that ``accept_content`` does not allow;
        JobNotFound; StoreError.
    """
    cells = _cells(store, job)
    outcomes = {row: _outcome(job, row, cells.get(row, {})) for row in range(job.num_tasks)}
    del cells
    rows = IndexSet(row for row, outcome in outcomes.items() if _is_wanted(outcome, which))
    done = IndexSet(row for row in rows if outcomes[row].cell.status == FINISHED)
    members = None if job.flow is None else read_members(app, BlockCache(), store, job, rows)
    results = read_results(store, job, done) if job.results else iter(())
    result = next(results, None)
    for row in rows:
        entry = _entry(row, outcomes.pop(row), None if members is None else next(members))
        if result is not None and result[0] == row:
            name = "unavailable" if isinstance(result[1], Unavailable) else "result"
            entry[name] = to_json_types(result[1])
            result = next(results, None)
        yield entry


def _cells(store: FullStore, job: JobRecord) -> dict[int, dict[str, _Cell]]:
    """Return the written cells of each row by their tags."""
    found: dict[int, dict[str, _Cell]] = {}
    for state in store.list_states(job.ref, Scope()):
        cell = _Cell(int(state.status), state.message and intern(state.message), state.attempt)
        found.setdefault(state.task_index, {})[intern(state.tag)] = cell
    return found


def _outcome(job: JobRecord, row: int, cells: Mapping[str, _Cell]) -> _Outcome:
    stages = job.plan.stages(row) if job.plan else tuple(sorted(cells))
    for tag in stages:
        cell = cells.get(tag) or _missing(job, tag, row)
        if cell.status != FINISHED:
            break
    else:
        tag, cell = (stages[-1], cells[stages[-1]]) if stages else ("", _missing(job, "", row))
    return _Outcome(tag, cell, sum(each.attempt for each in cells.values()))


def _missing(job: JobRecord, tag: str, row: int) -> _Cell:
    state = missing_state(job, tag, row)
    return _Cell(int(state.status), state.message, 0)


def _is_wanted(outcome: _Outcome, which: Rows) -> bool:
    if which is Rows.ALL:
        return True
    return outcome.cell.status == FINISHED if which is Rows.FINISHED else outcome.cell.status < 0


def _entry(row: int, outcome: _Outcome, member: Member | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"taskIndex": row}
    if member is not None:
        entry["tasks"] = [to_json_types(stage._asdict()) for stage in member.stages]
    status, message, _ = outcome.cell
    return {
        **entry,
        "status": status_name(status),
        "tag": outcome.tag,
        "message": message,
        "attempts": outcome.attempts,
    }


def to_json_types(value: Any) -> Any:
    """Return a value of any type as one of JSON: dates as in ISO 8601, NaN as None, bytes as base64, others as text."""
    if isinstance(value, Enum):
        return to_json_types(value.value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            to_json_types(key if isinstance(key, str) else to_text(key)): to_json_types(value[key]) for key in value
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json_types(each) for each in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return to_text(value)
