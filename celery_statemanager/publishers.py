"""Determine which rows of a job a sweep must publish: those that are due, and those that a dead publisher claimed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from celery_statemanager.leases import RENEWALS, cell_name
from celery_statemanager.liveness import ListedCells
from celery_statemanager.records import Claim, JobRecord, OutboxState


class Fate(Enum):
    """Whether a publisher lives, and if not, whether it has published what it had claimed last."""

    ALIVE = "alive"
    DEAD = "dead"
    ENDED = "ended"


class Publishers:
    """The publishers of a store, as of the worker records that a sweep has read.

    Args:
        workers: the workers by id.
        lease: in microseconds.
    """

    def __init__(self, workers: Mapping[str, ListedCells], lease: int) -> None:
        self._workers = workers
        self._lease = lease

    def fate(self, job: JobRecord, publisher: str, claim: Claim, now: int) -> Fate:
        """Return whether the publisher of a claim lives, and if not, whether it has published the claim.

        A publisher publishes a claim within less than a renewal, or gives it back. Only a broker that does not answer
        takes longer; then the record still lists the stage whose end claimed the row for the next one.
        """
        if claim.until != claim.at:
            return Fate.DEAD if claim.until <= now else Fate.ALIVE
        worker_id, _, thread = publisher.partition("/")
        worker, process = self._workers.get(worker_id), int(thread.partition(".")[0])
        if worker is None:  # a process that ends releases what it has published
            return Fate.DEAD if claim.at < now - self._lease else Fate.ALIVE
        is_listed = worker.processes is not None and process in worker.processes
        if worker.gone_at > now:
            may_live = is_listed or worker.processes is None or claim.at >= worker.renewed_at
            return Fate.ALIVE if may_live else Fate.DEAD
        is_older = claim.at < worker.renewed_at - self._lease // RENEWALS
        was_published = is_listed and is_older and not _is_ending(worker, job, claim)
        return Fate.ENDED if was_published else Fate.DEAD


def _is_ending(worker: ListedCells, job: JobRecord, claim: Claim) -> bool:
    """Return whether a worker lists a stage of a claimed row as running."""
    tags = job.plan.columns if job.plan else ()
    return any(worker.lists(cell_name(job.ref, tag, row)) for tag in tags for row in claim.rows)


def _is_publishing(outbox: OutboxState) -> bool:
    """Return whether a process publishes all rows of a job. Claims without a lease are those of ends, for few rows."""
    return any(claim.until != claim.at for claim in outbox.claims.values())


def has_due(job: JobRecord, outbox: OutboxState) -> bool:
    """Return whether rows of a job are due that no process is about to publish."""
    if outbox.returned.begun:
        return True
    if job.cancelled or (job.flow is not None and job.flow.paused):
        return False
    is_new = outbox.claimed < job.num_tasks and (job.has_window or not _is_publishing(outbox))
    return is_new or bool(outbox.returned.waiting)
