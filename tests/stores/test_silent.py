"""A worker that stops renewing its record is reported before its lease ends, by the clock of each store (rule R25)."""

from __future__ import annotations

import threading
import time

from celery_statemanager import leases
from celery_statemanager.explain import explain
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.records import Begin, new_event_id
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import PATIENCE

WORKER = "pod-3:4711:ab12"
LEASE = 3.0


def test_a_worker_that_stops_renewing_is_silent_and_then_lost(store):
    job = Grid.submitted(store, 2, ("scan",), "etl").job
    store.begin(job.ref, Begin(tag="scan", task_index=0, event_id=new_event_id(), owner=WORKER))
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 0)]), LEASE)
    codes, pause, deadline = [], threading.Event(), time.monotonic() + PATIENCE
    while "lost" not in codes:
        assert time.monotonic() < deadline
        codes += [each.code for each in explain(store, job) if each.rows and 0 in each.rows]
        pause.wait(0.05)
    assert list(dict.fromkeys(codes)) == ["running", "silent", "lost"]
