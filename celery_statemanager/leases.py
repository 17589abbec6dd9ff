"""Who runs what, and until when that is believed (rules R14, R16)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from celery_statemanager.codec import compact
from celery_statemanager.records import Begin, BeginReply, JobRef, Verdict
from celery_statemanager.stores.base import Store


def renew(store: Store, worker_id: str, running: Iterable[str], lease: float) -> None:
    """Say in one write that a worker lives for ``lease`` more seconds and runs these Celery task ids."""
    store.put_worker(worker_id, compact({"running": sorted(running)}), lease)


def runs(store: Store, worker_id: str, celery_task_id: str) -> bool:
    """Whether a worker, by its live record, runs a message of this id."""
    now = store.now()
    record = next((each for each in store.list_workers() if each.worker_id == worker_id), None)
    return record is not None and record.lease_until > now and celery_task_id in json.loads(record.body)["running"]


def begin(store: Store, ref: JobRef, request: Begin, celery_task_id: str) -> BeginReply:
    """Take an attempt; a duplicate takes it only from an attempt that no live worker lists.

    An attempt of the asking worker itself is left to that worker's own word: its record is only as fresh as
    its last renewal.
    """
    reply = store.begin(ref, request)
    if reply.verdict is not Verdict.DUPLICATE:
        return reply
    owner = reply.cell.owner
    if owner is not None and runs(store, owner, celery_task_id):
        return reply
    return store.begin(ref, replace(request, supersedes=reply.cell.attempt))
