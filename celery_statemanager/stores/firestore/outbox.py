"""The documents of an outbox.

``outbox/state`` contains the claims and changes by compare-and-set. It cannot be written as often as stages end, so
the commit of a cell writes two kinds of small documents without reading them: ``returned/{row}`` for a row whose
message is due again, and ``claims/{publisher}`` for the row whose stage a publisher has finished. A claim deletes them.

A claim in the document of its publisher is newer than one in ``outbox/state``, because each later claim of the
publisher deletes that document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from celery_statemanager.codec import compact, outbox_from_json, outbox_to_json
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claim, JobRecord, JobRef, OutboxState, Returned
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.documents import JobDocument, remember
from celery_statemanager.stores.firestore.errors import CallDeadline
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.names import DocumentNames, publisher_of

RETURNED_AT_ONCE = 300
"""Returned rows that a claim reads, and the maximum number of rows that it claims if there are more."""

MAX_RETURNING_JOBS = 1_000
"""Jobs that are known to have returned rows. One that is forgotten costs a write of its claims."""

_WAITING = 2**32
"""Added to the ``order`` of rows that have not begun, so that they come after all others."""


@dataclass(frozen=True)
class ClaimsDocument:
    """The document ``outbox/state``.

    Attributes:
        state: the claims that it contains. Its ``returned`` is empty.
        operations: the operation that made the claim of each publisher, so that one whose answer was lost is
            recognised.
        paid_until: the time by which one write in ``Timings.claim_every`` makes as many writes as there were. It is at
            most this period and ``Timings.claim_burst`` ahead of the last write.
        returns: whether a row of the job was ever returned.
        update_time: the precondition of the next write; None if the document does not exist.
    """

    state: OutboxState
    operations: Mapping[str, str]
    paid_until: int
    returns: bool
    update_time: Any

    @classmethod
    def parse(cls, document: Document | None) -> ClaimsDocument:
        """Decode the document."""
        fields = document.fields if document else {}
        state = outbox_from_json(fields.get("claimed", 0), fields.get("claims", outbox_to_json(OutboxState())))
        operations = json.loads(fields.get("operations", "{}"))
        update_time = document.update_time if document else None
        return cls(state, operations, fields.get("paidUntil", 0), fields.get("returns", False), update_time)

    def fields(self, job: JobRecord) -> dict[str, Any]:
        """Return the fields of the document."""
        return {
            "claimed": self.state.claimed,
            "claims": outbox_to_json(self.state),
            "operations": compact(dict(self.operations)),
            "paidUntil": self.paid_until,
            "returns": self.returns,
            "revision": job.revision,
        }


class NextClaim(NamedTuple):
    """The claim of a row whose stage its publisher has finished."""

    claim: Claim
    update_time: Any


class ReturnedRow(NamedTuple):
    """A row whose message is due again."""

    begun: bool
    waiting: bool
    update_time: Any


@dataclass(frozen=True)
class Outbox:
    """The documents of an outbox, as far as a claim needs them.

    Attributes:
        next_claims: those of the publishers whose claims change.
        rows: the first returned rows.
        unread: the number of the other returned rows; None if they were not counted.
    """

    main: ClaimsDocument
    next_claims: Mapping[str, NextClaim]
    rows: Mapping[int, ReturnedRow]
    unread: int | None = 0

    @property
    def state(self) -> OutboxState:
        """The content of all documents."""
        claims = {**self.main.state.claims, **{name: each.claim for name, each in self.next_claims.items()}}
        return OutboxState(self.main.state.claimed, claims, _returned(self.rows))


class Outboxes:
    """Reads outboxes, and remembers in which of them rows were returned."""

    def __init__(self, database: Database, jobs: JobDocuments) -> None:
        self._database = database
        self._jobs = jobs
        self._returns: dict[JobRef, None] = {}

    def returns(self, ref: JobRef) -> bool:
        """Return whether any row of a job was ever returned, as far as this process knows."""
        return ref in self._returns

    def note_returned(self, ref: JobRef) -> None:
        """Remember that a row of a job was returned."""
        remember(self._returns, ref, None, MAX_RETURNING_JOBS)

    def read(
        self, ref: JobRef, publishers: Iterable[str], rows: Iterable[int], deadline: CallDeadline
    ) -> tuple[JobDocument, Outbox, Any]:
        """Read a job, its claims, the next stages that publishers have claimed, and whether rows are returned.

        Returns: the documents as of one time, and this time. Raises: JobNotFound.
        """
        names, known = self._database.names, self._jobs.recent(ref)
        if known is not None and not has_next_stages(known.job):
            publishers = ()
        name, main = names.job(ref.key), names.outbox(ref)
        claims = {names.claim(ref, publisher): publisher for publisher in publishers}
        returned = {names.returned(ref, row): row for row in rows}
        batch = self._database.get([name, main, *claims, *returned], deadline)
        found = batch.documents
        job = self._jobs.checked(ref, self._jobs.decode(ref.key, found.get(name)))
        outbox = Outbox(
            ClaimsDocument.parse(found.get(main)),
            {publisher: _next_claim(found[each]) for each, publisher in claims.items() if each in found},
            {row: _returned_row(found[each]) for each, row in returned.items() if each in found},
        )
        if outbox.main.returns:
            self.note_returned(ref)
        return job, outbox, batch.read_time

    def with_returned(self, job: JobRecord, outbox: Outbox, at: Any, deadline: CallDeadline) -> Outbox:
        """Add the first rows that were returned at a time, and count the others for a job with a window."""
        if not outbox.main.returns:
            return outbox
        run = self._database.names.run(job.ref)
        first = requests.select("returned", order=("order",), limit=RETURNED_AT_ONCE)
        page = self._database.query(run, first, deadline, at=at)
        rows = {**outbox.rows, **{int(each.id): _returned_row(each) for each in page}}
        if len(page) < RETURNED_AT_ONCE:
            return replace(outbox, rows=rows)
        every = requests.select("returned")
        count = self._database.sums(run, every, (), deadline, count=True, at=at)["count"] if job.has_window else None
        return replace(outbox, rows=rows, unread=None if count is None else max(0, count - len(rows)))

    def read_all(self, ref: JobRef) -> OutboxState:
        """Return the whole state of an outbox as of one time. Raises: JobNotFound."""
        job, outbox, at = self.read(ref, (), (), self._database.deadline())
        run = self._database.names.run(ref)
        claims, rows = {}, {}
        if job.job.flow is not None and has_next_stages(job.job):
            claims = {publisher_of(each.id): _next_claim(each) for each in self._database.pages(run, "claims", at=at)}
        if outbox.main.returns:
            rows = {int(each.id): _returned_row(each) for each in self._database.pages(run, "returned", at=at)}
        return replace(outbox, next_claims=claims, rows=rows).state

    def next_claim(self, ref: JobRef, event_id: str) -> IndexSet:
        """Return the row that a write has claimed for its next stage, if its publisher has made no later claim."""
        made = requests.select("claims", ("event", "==", event_id), limit=1)
        found = self._database.query(self._database.names.run(ref), made, self._database.deadline())
        return _next_claim(found[0]).claim.rows if found else IndexSet()


def has_next_stages(job: JobRecord) -> bool:
    """Return whether a row of a job may have several stages."""
    return job.plan is None or any(len(stages) > 1 for stages, _ in job.plan.shapes)


def next_claim_write(names: DocumentNames, ref: JobRef, publisher: str, claim: Claim, event_id: str) -> Any:
    """Build the write of the claim of a next stage, at the time of its commit."""
    return requests.stamp_time(names.claim(ref, publisher), {"row": claim.rows.first, "event": event_id}, "at")


def returned_write(names: DocumentNames, ref: JobRef, row: int, returned: Returned) -> Any:
    """Build the write of a row that is in a set of returned rows, or its deletion, without a precondition."""
    name = names.returned(ref, row)
    begun, waiting = row in returned.begun, row in returned.waiting
    if not (begun or waiting):
        return requests.delete(name)
    fields = {"order": row if begun else row + _WAITING, "begun": begun, "waiting": waiting}
    return requests.overwrite(name, fields)


def changes(names: DocumentNames, ref: JobRef, outbox: Outbox, returned: Returned) -> Iterator[Any]:
    """Yield the writes of the small documents after a claim that leaves these rows returned.

    Each has the precondition that its document is unchanged.
    """
    for publisher, each in outbox.next_claims.items():
        yield requests.delete(names.claim(ref, publisher), each.update_time)
    before = outbox.state.returned
    pairs = ((before.begun, returned.begun), (before.waiting, returned.waiting))
    for row in IndexSet().union(*(each for one, other in pairs for each in (one.without(other), other.without(one)))):
        known = outbox.rows.get(row)
        write = returned_write(names, ref, row, returned)
        requests.require(write, known.update_time if known else None)
        yield write


def _returned(rows: Mapping[int, ReturnedRow]) -> Returned:
    begun = IndexSet(row for row, each in rows.items() if each.begun)
    return Returned(begun, IndexSet(row for row, each in rows.items() if each.waiting))


def _returned_row(document: Document) -> ReturnedRow:
    return ReturnedRow(document.fields["begun"], document.fields["waiting"], document.update_time)


def _next_claim(document: Document) -> NextClaim:
    at = int(document.fields["at"])
    return NextClaim(Claim(IndexSet([document.fields["row"]]), at, at), document.update_time)
