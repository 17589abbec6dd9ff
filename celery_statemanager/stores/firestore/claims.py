"""The claims of rows to publish: a document for each job, changed by compare-and-set.

Each revision of a job also writes the document of its claims. A claim is therefore atomic with cancellations and with
changes of the window, although it does not write the job. It reads the job, the claims, the sums of the tallies and the
returned rows as of one time. A row that ends or returns later only makes more room, and one that is reset later was not
in flight before, so at most the permitted number of rows is in flight.

The end of a cell claims after its commit, like the latches: the process that sums last finds all ends counted. A
document cannot be written as often as rows end. If the ends of a job claim faster than once a second for long, an end
leaves its room to a later one. A later end exists, because room is left only while more than half of the window is in
flight. The last of these ends finds less in flight and claims. If its process dies before that, the sweep claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claimed, ClaimRequest, JobRecord, JobRef, OutboxState, Returned, Tally, Write
from celery_statemanager.stores import steps
from celery_statemanager.stores.firestore import outbox, requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import JobDocument
from celery_statemanager.stores.firestore.errors import CallDeadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments, new_operation
from celery_statemanager.stores.firestore.latches import JobCounts, Latches
from celery_statemanager.stores.firestore.outbox import RETURNED_AT_ONCE, ClaimsDocument, Outbox, Outboxes
from celery_statemanager.stores.firestore.timings import in_microseconds

MAX_IN_BATCH = 100
"""Maximum number of rows that an end claims while ends leave their room to later ones."""

NOTHING = Claimed(IndexSet(), IndexSet(), 0)


class Found(NamedTuple):
    """A job with its claims, its sums and its returned rows, as of one time."""

    job: JobDocument
    outbox: Outbox
    total: Tally

    @property
    def counts(self) -> JobCounts:
        """The job and its sums."""
        return JobCounts(self.job, self.total)

    @property
    def in_flight(self) -> int:
        """The number of rows that are published and have not ended."""
        state = self.outbox.state
        return state.claimed - self.total.rows - len(state.returned) - (self.outbox.unread or 0)


@dataclass
class _ClaimStep:
    """The ``steps.ClaimTransaction`` of one try."""

    found: Found
    now: int
    changed: OutboxState | None = None

    @property
    def job(self) -> JobRecord:
        return self.found.job.job

    def total(self) -> Tally:
        """Return the sums. Returned rows that were not read are no more in flight than rows that have ended."""
        total = self.found.total
        return total._replace(rows=total.rows + (self.found.outbox.unread or 0))

    def outbox(self) -> OutboxState:
        return self.found.outbox.state

    def put_outbox(self, state: OutboxState) -> None:
        self.changed = state


class Claims:
    """Makes the claims of jobs."""

    def __init__(self, database: Database, jobs: JobDocuments, latches: Latches) -> None:
        self._database = database
        self.outboxes = Outboxes(database, jobs)
        self._latches = latches

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        """Claim rows. Raises: JobNotFound."""
        return self._claim(ref, request, lambda _: request, new_operation())

    def read_after_end(self, ref: JobRef, publisher: str) -> Found | None:
        """Read what decides a claim after the commit that ended a cell. Return None if the job was deleted."""
        try:
            return self._find(ref, ClaimRequest(publisher=publisher, limit=0), self._database.deadline())
        except JobNotFound:
            return None

    def claim_after_end(self, ref: JobRef, write: Write, found: Found | None, *, may_claim: bool) -> Claimed:
        """Claim the rows for which the end of a cell made room, or leave the room to a later end.

        If the same write has claimed rows before, return them.

        Args:
            found: the result of ``read_after_end``; None reads it again.
            may_claim: False to claim no other rows.
        """
        request = ClaimRequest(publisher=write.publisher or "", limit=steps.CLAIMS_AT_AN_END)

        def request_of(found: Found) -> ClaimRequest | None:
            if not may_claim or not found.job.job.has_window or self._leaves_room(found):
                return None
            return replace(request, limit=MAX_IN_BATCH) if self._is_ahead(found.outbox.main) else request

        try:
            return self._claim(ref, request, request_of, write.event_id, found)
        except JobNotFound:
            return NOTHING

    def _leaves_room(self, found: Found) -> bool:
        """Return whether an end claims nothing because a later end will.

        While no published row waits to begin, workers may be idle, so the room is left for a shorter time.
        """
        window, state, in_flight = found.job.job.max_in_flight, found.outbox.main.state, found.in_flight
        if window is None or not self._is_ahead(found.outbox.main):
            return False
        last = max((claim.at for claim in state.claims.values()), default=0)
        pause = in_microseconds(self._database.timings.claim_pause)
        may_wait = in_flight > found.total.pending or self._database.now() < last + pause
        return may_wait and 2 * in_flight > window

    def _is_ahead(self, claims: ClaimsDocument) -> bool:
        """Return whether the claims of a job have been written too often for some time."""
        return claims.paid_until > self._database.now() + in_microseconds(self._database.timings.claim_burst)

    def _claim(
        self,
        ref: JobRef,
        asked: ClaimRequest,
        request_of: Callable[[Found], ClaimRequest | None],
        operation: str,
        found: Found | None = None,
    ) -> Claimed:
        """Make a claim, and decide again after a lost race.

        Args:
            asked: the request, whose limit may differ.
            request_of: returns the request for what was read, or None to claim nothing.
            operation: identifies the claim, in order to find it if the answer of its commit was lost.
        """
        deadline = self._database.deadline()
        tried: Claimed | None = None
        while True:
            found = found or self._find(ref, asked, deadline)
            job, main = found.job.job, found.outbox.main
            made = next((name for name, each in main.operations.items() if each == operation), None)
            if made is not None:
                rows = main.state.claims[made].rows
                again = tried.again if tried and tried.rows == rows else rows
                return Claimed(rows, again, job.num_tasks - main.state.claimed)
            request = request_of(found)
            if request is None:
                return NOTHING._replace(left=job.num_tasks - main.state.claimed)
            if found.outbox.unread != 0:  # unread rows come before those that were never claimed
                request = replace(request, limit=min(request.limit, RETURNED_AT_ONCE))
            step = _ClaimStep(found, self._database.now())
            tried = steps.claim(step, request)
            if step.changed is None:
                return tried
            try:
                self._commit(found, request.publisher, step.changed, operation, deadline)
                return tried
            except (PreconditionFailed, Transient) as error:
                deadline.pause(error)
            found = None

    def _commit(self, found: Found, publisher: str, state: OutboxState, operation: str, deadline: CallDeadline) -> None:
        job, names, old = found.job.job, self._database.names, found.outbox.main
        writes = list(outbox.changes(names, job.ref, found.outbox, state.returned))
        new = replace(state, returned=Returned())
        if new != old.state or state.returned != found.outbox.state.returned:
            operations = {**old.operations, publisher: operation}
            kept = {name: operations[name] for name in state.claims if name in operations}
            returns = old.returns or bool(state.returned)
            document = ClaimsDocument(new, kept, self._paid_until(old), returns, None)
            writes.append(requests.put(names.outbox(job.ref), document.fields(job), old.update_time))
        self._database.commit(writes, deadline)

    def _paid_until(self, old: ClaimsDocument) -> int:
        now, timings = self._database.now(), self._database.timings
        every, burst = in_microseconds(timings.claim_every), in_microseconds(timings.claim_burst)
        return min(max(old.paid_until, now) + every, now + every + burst)

    def _find(self, ref: JobRef, request: ClaimRequest, deadline: CallDeadline) -> Found:
        publishers = {*request.dead, *request.ended, request.publisher}
        rows = request.returned.begun.union(request.returned.waiting)
        job, found, at = self.outboxes.read(ref, publishers, rows, deadline)
        total = self._latches.total(job.job, deadline, at=at) if job.job.has_window else Tally()
        return Found(job, self.outboxes.with_returned(job.job, found, at, deadline), total)
