"""Aggregates of one job as of one time: its lowest cells and its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.records import Cell, Column, JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import BatchRead, Database
from celery_statemanager.stores.firestore.documents import cell_of, column_of
from celery_statemanager.stores.firestore.errors import CallDeadline
from celery_statemanager.stores.firestore.tallies import ShardCounts
from celery_statemanager.stores.firestore.view import cell_document
from celery_statemanager.stores.transactional import CellKey

MAX_CACHED_FLOORS = 1_000
"""Jobs whose floors a store caches, see ``JobSnapshot``."""

_SUMMED = tuple(name for name in ShardCounts._fields if name not in {"not_run", "rows", "failed_rows", "stalled"})
_HALVES = _SUMMED[:5], _SUMMED[5:]
"""A query sums at most five fields, and only documents that have them all. Older shards lack the other fields."""


class JobSnapshot:
    """Queries the aggregates of a job that has tallies, as of the time when the job was read.

    Args:
        floors: by column, the number of leading expected rows known to be written. It never decreases.
    """

    def __init__(
        self, database: Database, job: JobRecord, at: Any, floors: dict[str, int], deadline: CallDeadline
    ) -> None:
        self._database = database
        self._at = at
        self._floors = floors
        self._deadline = deadline
        self._run = database.names.run(job.ref)
        self._parent = database.names.job(job.key)
        self.job = job

    def lowest(self, scope: Scope) -> State:
        """Return the lowest cell of a scope, missing cells included."""
        row = scope.task_index
        tags = self._expected_tags() if scope.tag is None else [scope.tag]
        if row is None:
            states: Iterable[State] = [self._lowest(tag, None) for tag in tags]
        else:
            expected = [tag for tag in tags if scope.tag is not None or aggregate.expects(self.job, tag, row)]
            states = self._states([(tag, row) for tag in expected])
        return aggregate.lowest(states) or aggregate.missing_state(self.job, scope.tag or "", row or 0)

    def column_summaries(self, tag: str | None) -> list[Column]:
        """Summarize the expected columns, or a single one, without index sets."""
        return [self._column(each) for each in (self._expected_tags() if tag is None else [tag])]

    def _column(self, tag: str) -> Column:
        counts = self._counts(tag)
        progress = 0
        if counts.running:
            cells = requests.select("states", ("column", "==", column_of(self.job.ref, tag)))
            progress = self._sums(self._parent, cells, ("fraction",))["fraction"]
        rows = aggregate.expected_rows(self.job, tag)
        return Column(tag, len(rows), counts.tally(progress), self._lowest(tag, counts.written))

    def _counts(self, tag: str) -> ShardCounts:
        shards = requests.select("tallies", ("tag", "==", tag))
        sums = {**self._sums(self._run, shards, _HALVES[0]), **self._sums(self._run, shards, _HALVES[1])}
        if sums["ended"] > sums["succeeded"]:
            sums |= self._sums(self._run, shards, ("not_run",))
            sums |= self._sums(self._run, shards, ("failed_rows",))
        if sums["pending"]:
            sums |= self._sums(self._run, shards, ("stalled",))
        return ShardCounts(**sums, rows=self._ended_rows(tag, sums["ended"]))

    def _ended_rows(self, tag: str, ended: int) -> int:
        """Return the number of rows that have ended with a column. Only one that ends some of its rows costs a sum."""
        last = {stages[-1] == tag for stages, _ in self.job.plan.shapes if tag in stages} if self.job.plan else set()
        if len(last) < 2 or not ended:
            return ended if True in last else 0
        return self._sums(self._run, requests.select("tallies", ("tag", "==", tag)), ("rows",))["rows"]

    def _lowest(self, tag: str, written: int | None) -> State:
        rows = aggregate.expected_rows(self.job, tag)
        column = ("column", "==", column_of(self.job.ref, tag))
        states = self._first(column, order=("status", "taskID"))
        if states and states[0].status < (Status.CANCELLED if self.job.cancelled else 0):
            return states[0]
        if states and written is None:
            shards = requests.select("tallies", ("tag", "==", tag))
            written = self._sums(self._run, shards, ("written",))["written"]
        if not states:
            states.append(aggregate.missing_state(self.job, tag, rows.first))
        elif written is not None and written < len(rows):
            states.append(aggregate.missing_state(self.job, tag, self._first_missing(tag, rows)))
        if self.job.cancelled:
            states += self._first(column, ("waiting", "==", True), order=("taskID",))
        lowest = aggregate.lowest(states)
        assert lowest is not None
        return lowest

    def _first(self, *filters: requests.Filter, order: tuple[str, ...]) -> list[State]:
        structured = requests.select("states", *filters, order=order, limit=1)
        documents = self._database.query(self._parent, structured, self._deadline, at=self._at)
        return [
            aggregate.visible_state(self.job, fields["tag"], fields["taskID"], cell_of(fields))
            for fields in (document.fields for document in documents)
        ]

    def _first_missing(self, tag: str, rows: IndexSet) -> int:
        """Return the lowest expected row that was never written, with at most log2(n) counts. There must be one.

        Invariant, in positions among the expected rows: all before ``low`` are written, and one before ``high`` is
        missing.
        """
        low, high = self._floors.get(tag, 0), len(rows)
        column = ("column", "==", column_of(self.job.ref, tag))
        while high - low > 1:
            middle = (low + high) // 2
            between = (("taskID", ">=", rows.after(low)), ("taskID", "<=", rows.after(middle - 1)))
            written = self._sums(self._parent, requests.select("states", column, *between), (), count=True)["count"]
            low, high = (middle, high) if written == middle - low else (low, middle)
        self._floors[tag] = max(low, self._floors.get(tag, 0))
        return rows.after(low)

    def _sums(self, parent: str, structured: Any, paths: tuple[str, ...], *, count: bool = False) -> dict[str, int]:
        return self._database.sums(parent, structured, paths, self._deadline, count=count, at=self._at)

    def _expected_tags(self) -> list[str]:
        return aggregate.expected_tags(self.job, () if self.job.plan else self._written_tags())

    def _written_tags(self) -> Iterator[str]:
        """Yield the written tags; each query skips the remaining shards of a tag."""
        after: tuple[requests.Filter, ...] = ()
        while True:
            structured = requests.select("tallies", *after, order=("tag",), limit=1)
            shards = self._database.query(self._run, structured, self._deadline, at=self._at)
            if not shards:
                return
            tag = shards[0].fields["tag"]
            yield tag
            after = (("tag", ">", tag),)

    def _states(self, keys: list[CellKey]) -> list[State]:
        if not keys:
            return []
        names = {key: self._database.names.cell(self.job.ref, *key) for key in keys}
        batch = self._database.get(names.values(), self._deadline, at=self._at)
        cells = {key: read_cell(self.job, batch, name) for key, name in names.items()}
        return [aggregate.visible_state(self.job, *key, cell) for key, cell in cells.items()]


def read_cell(job: JobRecord, batch: BatchRead, name: str) -> Cell | None:
    """Return a cell of a batch, or None if the job has no such cell."""
    return cell_document(job, batch, name).cell
