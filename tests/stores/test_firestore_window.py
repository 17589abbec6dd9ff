"""A process is killed after the last cell's write and before the decision, which only Firestore separates."""

from __future__ import annotations

import subprocess
import sys
import uuid

from sweep_actions import RecordedActions

from celery_statemanager import open_store
from celery_statemanager.records import Policy
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

WRITER = """
import os, signal, sys
from celery_statemanager.records import JobKey
from celery_statemanager.stores import open_store
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.testing import Grid

store = open_store(sys.argv[1], timeout=20)
grid = Grid(store, store.get_job(JobKey("job")).ref)
grid.begin("a", 0)
Latches.decide = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
grid.end("a", 0, int(sys.argv[2]))
"""


def killed_while_ending(url: str, status: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", WRITER, url, str(status)], timeout=60, check=False)


def test_the_sweep_makes_the_decision_that_a_killed_process_missed(firestore_emulator: str) -> None:
    url = f"firestore://test-{uuid.uuid4().hex[:12]}"
    with open_store(url, timeout=20, timings=Timings(check_after=-1.0, recheck_after=-1.0)) as store:
        grid = Grid.create(store, 1, ("a",), success="{}")
        killed = killed_while_ending(url, FINISHED)
        assert (killed.returncode, grid.cell("a", 0).status, grid.decided) == (-9, FINISHED, set())
        actions = RecordedActions()
        for _ in range(2):  # the first sweep decides, and the second one publishes
            Sweep(store, actions, lease=0.001, max_lost=3).run()
        assert grid.decided == {"success", "settled"}
        assert actions.published == [("job", "success")]


def test_the_sweep_cancels_a_job_whose_policy_a_killed_process_did_not_apply(firestore_emulator: str) -> None:
    url = f"firestore://test-{uuid.uuid4().hex[:12]}"
    with open_store(url, timeout=20, timings=Timings(check_after=-1.0, recheck_after=-1.0)) as store:
        grid = Grid.create(store, 3, ("a",), policy=Policy(0), failure="{}")
        assert killed_while_ending(url, FAILED).returncode == -9
        assert (grid.job.cancelled, grid.decided) == (None, set())
        actions = RecordedActions()
        for _ in range(2):
            Sweep(store, actions, lease=0.001, max_lost=3).run()
        assert grid.job.cancelled is not None
        assert grid.decided == {"failure", "settled"}
        assert actions.published == [("job", "failure")]
