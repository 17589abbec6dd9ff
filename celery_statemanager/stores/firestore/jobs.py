"""Job documents: found, remembered for a moment, created, replaced by compare-and-set."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from celery_statemanager.errors import JobExists, JobNotFound, StoreError
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import KnownJob, job_fields, job_of, remember
from celery_statemanager.stores.firestore.errors import Deadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import microseconds

MOST_REMEMBERED = 1_000


def new_operation() -> str:
    """Give a name for one atomic step, by which it is known again when its answer was lost."""
    return secrets.token_urlsafe(9)


class Jobs:
    """The jobs of a database. What is remembered is only used by writes, whose readers are told so in design.md."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[JobKey, KnownJob] = {}

    def get(self, key: JobKey, deadline: Deadline) -> KnownJob:
        """Read a job. Raises: JobNotFound."""
        name = self._database.names.job(key)
        return self.read(key, self._database.get([name], deadline).documents.get(name))

    def current(self, ref: JobRef, deadline: Deadline) -> KnownJob:
        """Read this very incarnation. Raises: JobNotFound."""
        return self.checked(ref, self.get(ref.key, deadline))

    def read(self, key: JobKey, document: Found | None) -> KnownJob:
        """Take a job's document that was read. Raises: JobNotFound – there is none, or it is no job's."""
        job = None if document is None else job_of(document.fields, key.job_id)
        if document is None or job is None:
            self.forget(key)
            raise JobNotFound(*key)
        return self.remember(KnownJob(job, document.stamp, document.fields.get("operations") or []), key)

    def checked(self, ref: JobRef, known: KnownJob) -> KnownJob:
        """Accept a job if it is this incarnation. Raises: JobNotFound."""
        if known.job.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return known

    def recent(self, ref: JobRef) -> KnownJob | None:
        """Give the job as it was seen a moment ago; None if it was not."""
        known = self._known.get(ref.key)
        if known is None or known.job.incarnation != ref.incarnation:
            return None
        return known if time.monotonic() - known.at < self._database.timings.job_memory else None

    def remember(self, known: KnownJob, key: JobKey | None = None) -> KnownJob:
        """Keep a job as it is seen now."""
        known.at = time.monotonic()
        remember(self._known, key or known.job.key, known, MOST_REMEMBERED)
        return known

    def forget(self, key: JobKey) -> None:
        """Know nothing of a job any more."""
        self._known.pop(key, None)

    def create(self, job: JobRecord) -> JobRecord:
        """Create a job. Raises: JobExists; StoreError – the document is there and is no job's."""
        deadline, operations = self._database.deadline(), [new_operation()]
        name = self._database.names.job(job.key)
        kept = replace(job, revision=1, latches=dict(job.latches))
        fields = job_fields(kept, operations, self._check_after())
        for told in ("createdAt", "lastActivity"):
            fields.pop(told, None)
        while True:
            try:
                answer = self._database.commit(
                    [requests.put(name, fields, None, ("createdAt", "lastActivity"))], deadline
                )
            except (PreconditionFailed, Transient) as error:
                found = self._in_the_way(job.key, deadline)
                if found is None:
                    deadline.pause(error)
                    continue
                if found.job.incarnation != job.incarnation:
                    raise JobExists(*job.key) from None
                return found.job
            (result,) = answer.write_results
            now = int(microseconds(result.transform_results[0].timestamp_value))
            kept = replace(kept, created_at=now, last_activity=now)
            return self.remember(KnownJob(kept, result.update_time, operations)).job

    def _in_the_way(self, key: JobKey, deadline: Deadline) -> KnownJob | None:
        """Read the job that has a name by now, if any. Raises: StoreError – a document that is no job's has it."""
        name = self._database.names.job(key)
        document = self._database.get([name], deadline).documents.get(name)
        if document is None:
            return None
        try:
            return self.read(key, document)
        except JobNotFound:
            raise StoreError(
                f"the document {document.id!r} in {self._database.names.address.collection!r} is no job's, so no job "
                f"can be created there: choose another job_id, or a collection of its own in the store's URL"
            ) from None

    def replace(self, known: KnownJob, job: JobRecord, operation: str, deadline: Deadline) -> KnownJob:
        """Write the document under its next revision if it is unchanged. Raises: PreconditionFailed, Transient."""
        operations = [*known.operations, operation]
        kept = replace(job, revision=known.job.revision + 1, latches=dict(job.latches))
        name = self._database.names.job(kept.key)
        fields = job_fields(kept, operations, self._check_after())
        (result,) = self._database.commit([requests.put(name, fields, known.stamp)], deadline).write_results
        return self.remember(KnownJob(kept, result.update_time, operations))

    def _check_after(self) -> int:
        return self._database.now() + in_microseconds(self._database.timings.check_after)
