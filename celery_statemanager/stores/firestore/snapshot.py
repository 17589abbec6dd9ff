"""What readers ask of one job as of one moment: the lowest cell, the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.records import Cell, Column, JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found, Got
from celery_statemanager.stores.firestore.documents import cell_of, column_of
from celery_statemanager.stores.firestore.errors import Deadline
from celery_statemanager.stores.firestore.tallies import Counts
from celery_statemanager.stores.firestore.view import known_of

_SUMMED = tuple(name for name in Counts._fields if name != "not_run")
_HALVES = _SUMMED[:5], _SUMMED[5:]
"""A query sums five fields at most, and only over documents that have them all: older shards have no ``not_run``."""


class Snapshot:
    """One job of ours as of the moment it was read.

    Args:
        floors: the rows known to be written, counted from the lowest expected one, by column. It only rises.
    """

    def __init__(self, database: Database, job: JobRecord, at: Any, floors: dict[str, int], deadline: Deadline) -> None:
        self._database = database
        self._at = at
        self._floors = floors
        self._deadline = deadline
        self._run = database.names.run(job.ref)
        self._parent = database.names.job(job.key)
        self.job = job

    def lowest(self, scope: Scope) -> State:
        """Give the lowest cell of a scope, absent ones counted."""
        row = scope.task_index
        tags = self._expected_tags() if scope.tag is None else [scope.tag]
        if row is None:
            found: Iterable[State] = [self._lowest(tag, None) for tag in tags]
        else:
            counts = [tag for tag in tags if scope.tag is not None or aggregate.expects(self.job, tag, row)]
            found = self._states([(tag, row) for tag in counts])
        return aggregate.lowest(found) or aggregate.missing_state(self.job, scope.tag or "", row or 0)

    def column_summaries(self, tag: str | None) -> list[Column]:
        """Give the expected columns, or one, without index sets."""
        return [self._column(each) for each in (self._expected_tags() if tag is None else [tag])]

    def _column(self, tag: str) -> Column:
        counts = self._counts(tag)
        progress = 0
        if counts.running:
            everything = requests.select("states", ("column", "==", column_of(self.job.ref, tag)))
            progress = self._sums(self._parent, everything, ("fraction",))["fraction"]
        rows = aggregate.expected_rows(self.job, tag)
        return Column(tag, len(rows), counts.tally(progress), self._lowest(tag, counts.written))

    def _counts(self, tag: str) -> Counts:
        shards = requests.select("tallies", ("tag", "==", tag))
        sums = {**self._sums(self._run, shards, _HALVES[0]), **self._sums(self._run, shards, _HALVES[1])}
        if sums["ended"] > sums["succeeded"]:
            sums |= self._sums(self._run, shards, ("not_run",))
        return Counts(**sums)

    def _lowest(self, tag: str, written: int | None) -> State:
        rows = aggregate.expected_rows(self.job, tag)
        column = ("column", "==", column_of(self.job.ref, tag))
        found = self._first(column, order=("status", "taskID"))
        if found and found[0].status < (Status.CANCELLED if self.job.cancelled else 0):
            return found[0]
        if found and written is None:
            shards = requests.select("tallies", ("tag", "==", tag))
            written = self._sums(self._run, shards, ("written",))["written"]
        if not found:
            found.append(aggregate.missing_state(self.job, tag, rows.first))
        elif written is not None and written < len(rows):
            found.append(aggregate.missing_state(self.job, tag, self._first_missing(tag, rows)))
        if self.job.cancelled:
            found += self._first(column, ("waiting", "==", True), order=("taskID",))
        lowest = aggregate.lowest(found)
        assert lowest is not None
        return lowest

    def _first(self, *filters: requests.Filter, order: tuple[str, ...]) -> list[State]:
        structured = requests.select("states", *filters, order=order, limit=1)
        documents = self._database.query(self._parent, structured, self._deadline, at=self._at)
        return [seen(self.job, document) for document in documents]

    def _first_missing(self, tag: str, rows: IndexSet) -> int:
        """Find the lowest expected row never written, of which there is one, in at most log2(n) counts.

        Before ``low``, counted in expected rows, all are written; at or before ``high - 1`` one is missing.
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
        return aggregate.expected_tags(self.job, () if self.job.plan else self._seen_tags())

    def _seen_tags(self) -> Iterator[str]:
        """Give the tags that were written, by skipping from one to the next."""
        after: tuple[requests.Filter, ...] = ()
        while True:
            structured = requests.select("tallies", *after, order=("tag",), limit=1)
            found = self._database.query(self._run, structured, self._deadline, at=self._at)
            if not found:
                return
            tag = found[0].fields["tag"]
            yield tag
            after = (("tag", ">", tag),)

    def _states(self, places: list[tuple[str, int]]) -> list[State]:
        if not places:
            return []
        names = {place: self._database.names.cell(self.job.ref, *place) for place in places}
        got = self._database.get(names.values(), self._deadline, at=self._at)
        return [
            aggregate.visible_state(self.job, *place, read_cell(self.job, got, name)) for place, name in names.items()
        ]


def read_cell(job: JobRecord, got: Got, name: str) -> Cell | None:
    """Give a cell that was read."""
    return known_of(job, got, name).cell


def seen(job: JobRecord, document: Found) -> State:
    """Give a cell's document as readers see it."""
    return aggregate.visible_state(job, document.fields["tag"], document.fields["taskID"], cell_of(document.fields))
