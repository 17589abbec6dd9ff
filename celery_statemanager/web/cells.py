"""The cells of a job: pages of states, and the class of every cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.limits import check_optional, short_repr
from celery_statemanager.models import State, Status
from celery_statemanager.overview import in_stage_order
from celery_statemanager.records import Column, JobRecord
from celery_statemanager.stores import Store
from celery_statemanager.web.errors import bad_request
from celery_statemanager.web.site import Site, number_in
from celery_statemanager.web.wire import JSON, encoded, state_to_json

MOST_STATES = 500
"""Maximum number of states in a page. Each state costs one read of the store."""

CLASSES = ("notStarted", "running", "finished", "failed", "cancelled", "notRun")
"""The classes of expected cells. Each cell is in one of them."""

MOST_EXAMINED = 500
"""Failed cells of a tag that are read to find those that a cancellation has ended. Further ones count as failed."""

_CURSOR = re.compile(r"([0-9]{1,9})@([\w.~%-]*)", re.ASCII)


class Place(NamedTuple):
    """The last cell of a page. The next page begins after it."""

    tag: str
    row: int

    def __str__(self) -> str:
        return f"{self.row}@{quote(self.tag, safe='')}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse a cursor. Raises: ValueError – it is not one of a page."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValueError(f"cursor must be one that an earlier page has returned, not {short_repr(text)}")
        return cls(unquote(match[2]), int(match[1]))


async def list_states(site: Site, request: Request) -> JSON:
    """Return a page of the expected cells of a job, by stage and row."""
    job = await site.find(request)
    query = request.query_params
    limit, kind = number_in(request, "limit", 100, MOST_STATES), query.get("class")
    if kind is not None and kind not in (*CLASSES, "stalled"):
        raise bad_request(f"class must be one of {', '.join((*CLASSES, 'stalled'))}, not {short_repr(kind)}")
    row: int | None = number_in(request, "task_index", -1, job.num_tasks - 1, 0)
    row = None if row == -1 else row
    tag = _tag_in(request)
    try:
        after = Place.parse(query["cursor"]) if "cursor" in query else None
    except ValueError as error:
        raise bad_request(error, "cursor") from None
    states, following = await run_in_threadpool(_page, site.store, job, tag, kind, row, after, limit)
    return JSON({"states": [state_to_json(each) for each in states], "cursor": following and str(following)})


async def show_grid(site: Site, request: Request) -> Response:
    """Return the class of each expected cell of a job, as runs of rows. Open pages ask for it at the same time."""
    job = await site.find(request)
    tag = _tag_in(request)

    def grid() -> bytes:
        record, columns = _columns(site.store, job, tag)
        tags = {each.tag: {"rows": record.num_tasks, "runs": _runs(site.store, record, each)} for each in columns}
        return encoded({"generation": record.generation.number, "tags": tags})

    return Response(await site.grids.get((job._record.ref, tag), grid), media_type=JSON.media_type)


def _tag_in(request: Request) -> str | None:
    try:
        return check_optional("tag", request.query_params.get("tag"))
    except ValueError as error:
        raise bad_request(error) from None


def _columns(store: Store, job: Job, tag: str | None) -> tuple[JobRecord, list[Column]]:
    """Return the record of a job and its expected columns in the order of the stages. Raises: WebError, StoreError."""
    record, columns = store.column_summaries(job._record.ref, indexes=True)
    columns = in_stage_order(record, columns)
    tags = [each.tag for each in columns]
    if tag is not None and tag not in tags:
        raise bad_request(f"job {record.job_id!r} has no tag {short_repr(tag)}; its tags are {', '.join(tags)[:200]}")
    return record, [each for each in columns if tag in (None, each.tag)]


def _classes(store: Store, record: JobRecord, column: Column) -> dict[str, IndexSet]:
    """Return the rows of a column by class, as readers see them."""
    summary = aggregate.summarize(record, [column], indexes=True)
    none = IndexSet()
    cancelled = _stopped_rows(store, record, column)
    if record.cancelled:
        cancelled = cancelled.union(column.missing or none)
    found = {
        "failed": (summary.failed_indexes or none).without(cancelled),
        "cancelled": cancelled,
        "notRun": summary.not_run_indexes or none,
        "running": summary.running_indexes or none,
        "notStarted": summary.missing_indexes or none,
    }
    expected = aggregate.expected_rows(record, column.tag)
    return {**found, "finished": expected.without(none.union(*found.values()))}


def _stopped_rows(store: Store, record: JobRecord, column: Column) -> IndexSet:
    """Return the rows of a column that have ended as CANCELLED. The store counts them as failed."""
    failed = column.failed or IndexSet()
    stopped = len(failed) - column.tally.failed_rows
    if stopped <= 0 or (record.cancelled is None and record.generation.number == 1):
        return IndexSet()
    if column.tally.failed_rows == column.tally.pending == 0:
        return failed
    cells = ((row, store.get_cell(record.ref, column.tag, row)) for row in islice(failed, MOST_EXAMINED))
    found = (row for row, cell in cells if cell is not None and cell.status == Status.CANCELLED)
    return IndexSet(islice(found, stopped))


def _runs(store: Store, record: JobRecord, column: Column) -> list[list[Any]]:
    classes = _classes(store, record, column)
    runs = [(low, high, kind) for kind, rows in classes.items() for low, high in rows.ranges]
    return [[kind, low, high - low + 1] for low, high, kind in sorted(runs)]


def _page(
    store: Store, job: Job, tag: str | None, kind: str | None, row: int | None, after: Place | None, limit: int
) -> tuple[list[State], Place | None]:
    """Return some cells, and the place of the last one if more follow."""
    record, columns = _columns(store, job, tag)
    if after is not None:
        tags = [each.tag for each in columns]
        if after.tag not in tags:
            raise bad_request(
                f"cursor names the tag {short_repr(after.tag)}, which the list does not contain", "cursor"
            )
        columns = columns[tags.index(after.tag) :]
    places: Iterator[Place] = chain.from_iterable(
        _places(store, record, each, kind, row, after.row if after and after.tag == each.tag else -1)
        for each in columns
    )
    found = list(islice(places, limit + 1))
    states = [aggregate.visible_state(record, *place, store.get_cell(record.ref, *place)) for place in found[:limit]]
    return states, found[limit - 1] if len(found) > limit else None


def _places(
    store: Store, record: JobRecord, column: Column, kind: str | None, row: int | None, after: int
) -> Iterator[Place]:
    if kind is None:
        rows = aggregate.expected_rows(record, column.tag)
    elif kind == "stalled":
        rows = column.stalled or IndexSet()
    else:
        rows = _classes(store, record, column)[kind]
    for low, high in rows.ranges:
        first, last = (max(low, after + 1), high) if row is None else (max(low, row, after + 1), min(high, row))
        yield from (Place(column.tag, each) for each in range(first, last + 1))
