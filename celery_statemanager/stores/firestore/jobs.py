"""Job documents: reads, a short-lived cache, creation and compare-and-set."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any

from celery_statemanager.errors import JobExists, JobNotFound, StoreError
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.capabilities import draft_expired
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.documents import JobDocument, job_fields, job_of, remember
from celery_statemanager.stores.firestore.errors import CallDeadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import microseconds

MAX_CACHED_JOBS = 1_000


def new_operation() -> str:
    """Return a new name for an atomic step. The name identifies the step if its answer is lost."""
    return secrets.token_urlsafe(9)


class JobDocuments:
    """Reads and writes the job documents of a database.

    Only writes use the cache; docs/internals/firestore.md describes what they may miss.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached: dict[JobKey, JobDocument] = {}

    def get(self, key: JobKey, deadline: CallDeadline) -> JobDocument:
        """Read a job. Raises: JobNotFound."""
        name = self._database.names.job(key)
        return self.decode(key, self._database.get([name], deadline).documents.get(name))

    def current(self, ref: JobRef, deadline: CallDeadline) -> JobDocument:
        """Read exactly this incarnation of a job. Raises: JobNotFound."""
        return self.checked(ref, self.get(ref.key, deadline))

    def decode(self, key: JobKey, document: Document | None) -> JobDocument:
        """Decode and cache a job. Raises: JobNotFound – the document does not exist or is not a job."""
        job = None if document is None else job_of(document.fields, key.job_id)
        if document is None or job is None:
            self.forget(key)
            raise JobNotFound(*key)
        return self.remember(JobDocument(job, document.update_time, document.fields.get("operations") or []), key)

    def checked(self, ref: JobRef, document: JobDocument) -> JobDocument:
        """Return the job if it is this incarnation. Raises: JobNotFound."""
        if document.job.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return document

    def recent(self, ref: JobRef) -> JobDocument | None:
        """Return the job from the cache, or None if it is absent, expired or of another incarnation."""
        document = self._cached.get(ref.key)
        if document is None or document.job.incarnation != ref.incarnation:
            return None
        return document if time.monotonic() - document.cached_at < self._database.timings.job_memory else None

    def remember(self, document: JobDocument, key: JobKey | None = None) -> JobDocument:
        """Cache a job that was just read or written."""
        document.cached_at = time.monotonic()
        remember(self._cached, key or document.job.key, document, MAX_CACHED_JOBS)
        return document

    def forget(self, key: JobKey) -> None:
        """Remove a job from the cache."""
        self._cached.pop(key, None)

    def create(self, job: JobRecord) -> JobRecord:
        """Create a job; its draft becomes its messages.

        Raises: JobExists; StoreError – the draft was dropped, or the name belongs to a document that is not a job.
        """
        deadline, operations = self._database.deadline(), [new_operation()]
        name = self._database.names.job(job.key)
        created = replace(job, revision=1, latches=dict(job.latches))
        fields = job_fields(created, operations, self._check_after())
        server_times = ("createdAt", "lastActivity")
        for path in server_times:
            fields.pop(path, None)
        writes = [requests.put(name, fields, None, server_times), *self._acceptance(job)]
        while True:
            try:
                response = self._database.commit(writes, deadline)
            except (PreconditionFailed, Transient) as error:
                existing = self._existing(job, deadline)
                if existing is None:
                    deadline.pause(error)
                    continue
                if existing.job.incarnation != job.incarnation:
                    raise JobExists(*job.key) from None
                return existing.job
            result = response.write_results[0]
            now = int(microseconds(result.transform_results[0].timestamp_value))
            created = replace(created, created_at=now, last_activity=now)
            return self.remember(JobDocument(created, result.update_time, operations)).job

    def _acceptance(self, job: JobRecord) -> list[Any]:
        """Return the writes that turn a draft into the messages of a job."""
        if job.flow is None:
            return []
        names = self._database.names
        return [
            requests.delete(names.draft(job.incarnation), must_exist=True),
            requests.overwrite(names.outbox(job.ref), {"revision": 1}),
        ]

    def _existing(self, job: JobRecord, deadline: CallDeadline) -> JobDocument | None:
        """Read the job under a key, if there is one.

        Raises: StoreError – the document is not a job, or there is none and the draft of this job does not exist.
        """
        name, draft = self._database.names.job(job.key), self._database.names.draft(job.incarnation)
        documents = self._database.get([name, draft] if job.flow else [name], deadline).documents
        document = documents.get(name)
        if document is None:
            if job.flow is not None and draft not in documents:
                raise draft_expired(job)
            return None
        try:
            return self.decode(job.key, document)
        except JobNotFound:
            raise StoreError(
                f"cannot create a job: the document {document.id!r} in {self._database.names.address.collection!r} is "
                "not a job; choose another job_id, or another collection in the store's URL"
            ) from None

    def update(self, job: JobRecord, deadline: CallDeadline) -> JobDocument | None:
        """Write the changeable fields of a job. Return None if its revision has changed. Raises: JobNotFound."""
        operation = new_operation()
        while True:
            current = self.current(job.ref, deadline)
            if operation in current.operations:
                return current
            if job.revision != current.job.revision:
                return None
            try:
                return self.replace(current, current.job.with_changes_of(job), operation, deadline)
            except (PreconditionFailed, Transient) as error:
                deadline.pause(error)

    def replace(self, document: JobDocument, job: JobRecord, operation: str, deadline: CallDeadline) -> JobDocument:
        """Write the next revision of a job if its document is unchanged. Raises: PreconditionFailed, Transient.

        The same commit writes the document of its claims, so that one which is computed from an earlier revision fails.
        """
        operations = [*document.operations, operation]
        updated = replace(job, revision=document.job.revision + 1, latches=dict(job.latches))
        fields = job_fields(updated, operations, self._check_after())
        names = self._database.names
        writes = [requests.put(names.job(updated.key), fields, document.update_time)]
        if updated.flow is not None:
            writes.append(requests.add(names.outbox(updated.ref), {"revision": updated.revision}, {}))
        result = self._database.commit(writes, deadline).write_results[0]
        return self.remember(JobDocument(updated, result.update_time, operations))

    def _check_after(self) -> int:
        return self._database.now() + in_microseconds(self._database.timings.check_after)
