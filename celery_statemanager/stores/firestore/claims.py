"""The claims of rows to publish: one document a job, changed by compare-and-set.

Each revision of a job also writes the document of its claims. A claim is therefore atomic with cancellations and with
changes of the window, although it does not write the job. It uses sums of the tallies that were read after the claims.
A row that ends later only makes more room, so at most the permitted number of rows is in flight.

The end of a cell claims after its commit, like the latches: the process that sums last finds all ends counted. A
document cannot be written as often as rows end. If the ends of a job claim faster than once a second for long, an end
leaves its room to a later one. A later end exists, because room is left only while more than half of the window is in
flight. The last of these ends finds less in flight and claims. If its process dies before that, the sweep claims.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_statemanager.codec import compact, outbox_from_json, outbox_to_json
from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claimed, ClaimRequest, JobRecord, JobRef, OutboxState, Tally, Write
from celery_statemanager.stores import steps
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import JobDocument
from celery_statemanager.stores.firestore.errors import CallDeadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments, new_operation
from celery_statemanager.stores.firestore.latches import JobCounts, Latches
from celery_statemanager.stores.firestore.timings import in_microseconds

MAX_IN_BATCH = 100
"""Maximum number of rows that an end claims while ends leave their room to later ones."""


@dataclass(frozen=True)
class ClaimsDocument:
    """The document with the claims of a job.

    Attributes:
        operations: the operation that made the claim of each publisher, so that one whose answer was lost is
            recognised.
        paid_until: the time by which one write in ``Timings.claim_every`` makes as many writes as there were. It is at
            most this period and ``Timings.claim_burst`` ahead of the last write.
        update_time: the precondition of the next write; None if the document does not exist.
    """

    state: OutboxState
    operations: Mapping[str, str]
    paid_until: int
    update_time: Any

    def fields(self, job: JobRecord) -> dict[str, Any]:
        """Return the fields of the document."""
        return {
            "claimed": self.state.claimed,
            "claims": outbox_to_json(self.state),
            "operations": compact(dict(self.operations)),
            "paidUntil": self.paid_until,
            "revision": job.revision,
        }


class Found(NamedTuple):
    """A job with its claims as of one time, and its sums as they were read after that."""

    job: JobDocument
    claims: ClaimsDocument
    total: Tally

    @property
    def counts(self) -> JobCounts:
        """The job and its sums."""
        return JobCounts(self.job, self.total)


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
        return self.found.total

    def outbox(self) -> OutboxState:
        return self.found.claims.state

    def put_outbox(self, state: OutboxState) -> None:
        self.changed = state


class Claims:
    """Reads and makes the claims of jobs."""

    def __init__(self, database: Database, jobs: JobDocuments, latches: Latches) -> None:
        self._database = database
        self._jobs = jobs
        self._latches = latches

    def state(self, ref: JobRef) -> OutboxState:
        """Return which rows are claimed. Raises: JobNotFound."""
        return self._read(ref, self._database.deadline())[1].state

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        """Claim rows. Raises: JobNotFound."""
        return self._claim(ref, request.publisher, lambda _: request, new_operation())

    def read_after_end(self, ref: JobRef) -> Found | None:
        """Read what decides a claim after the commit that ended a cell. Return None if the job was deleted."""
        try:
            return self._find(ref, self._database.deadline())
        except JobNotFound:
            return None

    def claim_after_end(self, ref: JobRef, write: Write, found: Found | None, *, may_claim: bool) -> IndexSet:
        """Claim the rows for which the end of a cell made room, or leave the room to a later end.

        If the same write has claimed rows before, return them.

        Args:
            found: the result of ``read_after_end``; None reads it again.
            may_claim: False to claim no other rows.
        """
        publisher = write.publisher or ""

        def request_of(found: Found) -> ClaimRequest | None:
            if not may_claim or not found.job.job.has_window or self._leaves_room(found):
                return None
            limit = MAX_IN_BATCH if self._is_ahead(found.claims) else steps.CLAIMS_AT_AN_END
            return ClaimRequest(publisher=publisher, limit=limit)

        try:
            return self._claim(ref, publisher, request_of, write.event_id, found).rows
        except JobNotFound:
            return IndexSet()

    def _leaves_room(self, found: Found) -> bool:
        """Return whether an end claims nothing because a later end will.

        While no published row waits to begin, workers may be idle, so the room is left for a shorter time.
        """
        window, state = found.job.job.max_in_flight, found.claims.state
        if window is None or not self._is_ahead(found.claims):
            return False
        in_flight = state.claimed - found.total.rows
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
        publisher: str,
        request_of: Callable[[Found], ClaimRequest | None],
        operation: str,
        found: Found | None = None,
    ) -> Claimed:
        """Make a claim, and decide again after a lost race.

        Args:
            request_of: returns the request for what was read, or None to claim nothing.
            operation: identifies the claim, in order to find it if the answer of its commit was lost.
        """
        deadline = self._database.deadline()
        tried: Claimed | None = None
        while True:
            found = found or self._find(ref, deadline)
            job, state = found.job.job, found.claims.state
            made = next((name for name, each in found.claims.operations.items() if each == operation), None)
            if made is not None:
                doubtful = tried.doubtful if tried else IndexSet()
                return Claimed(state.claims[made].rows, doubtful, job.num_tasks - state.claimed)
            request = request_of(found)
            if request is None:
                return Claimed(IndexSet(), IndexSet(), job.num_tasks - state.claimed)
            step = _ClaimStep(found, self._database.now())
            tried = steps.claim(step, request)
            if step.changed is None:
                return tried
            try:
                self._commit(found, publisher, step.changed, operation, deadline)
                return tried
            except (PreconditionFailed, Transient) as error:
                deadline.pause(error)
            found = None

    def _commit(self, found: Found, publisher: str, state: OutboxState, operation: str, deadline: CallDeadline) -> None:
        old, job = found.claims, found.job.job
        now, timings = self._database.now(), self._database.timings
        every, burst = in_microseconds(timings.claim_every), in_microseconds(timings.claim_burst)
        paid_until = min(max(old.paid_until, now) + every, now + every + burst)
        operations = {**old.operations, publisher: operation}
        kept = {name: operations[name] for name in state.claims if name in operations}
        new = ClaimsDocument(state, kept, paid_until, None)
        name = self._database.names.outbox(job.ref)
        self._database.commit([requests.put(name, new.fields(job), old.update_time)], deadline)

    def _find(self, ref: JobRef, deadline: CallDeadline) -> Found:
        job, claims = self._read(ref, deadline)
        return Found(job, claims, self._latches.total(job.job, deadline) if job.job.has_window else Tally())

    def _read(self, ref: JobRef, deadline: CallDeadline) -> tuple[JobDocument, ClaimsDocument]:
        """Read a job and its claims as of the same time. Raises: JobNotFound."""
        names = self._database.names
        name, claims_name = names.job(ref.key), names.outbox(ref)
        documents = self._database.get([name, claims_name], deadline).documents
        job = self._jobs.checked(ref, self._jobs.decode(ref.key, documents.get(name)))
        document = documents.get(claims_name)
        fields = document.fields if document else {}
        state = outbox_from_json(fields.get("claimed", 0), fields.get("claims", "{}"))
        operations = json.loads(fields.get("operations", "{}"))
        update_time = document.update_time if document else None
        return job, ClaimsDocument(state, operations, fields.get("paidUntil", 0), update_time)
