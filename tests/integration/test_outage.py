"""Outages of the store during a job (rule R18): tasks continue, and their states are written later."""

import sqlite3

import pytest

from celery_statemanager import Status
from celery_statemanager.integration.binding import Binding
from celery_statemanager.testing.kit import workers

PATIENCE = 40


@pytest.fixture
def outage(tracked, place):
    """Return a context manager that locks the file of the store, so that no other process can write to it."""
    if not place[0].endswith("sqlite"):
        pytest.skip("this outage is a lock on a SQLite file")
    path = tracked.app.conf.statemanager_store_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    yield lambda: Lock(connection)
    connection.close()


class Lock:
    def __init__(self, connection):
        self._connection = connection

    def __enter__(self):
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc):
        self._connection.execute("ROLLBACK")


def test_a_task_continues_during_an_outage_and_its_states_are_written_later(tracked, submit, key, outage, eventually):
    job = submit([tracked.work_through.s(key)], on_success=tracked.callback.s().set(queue="nobody"))
    eventually(lambda: tracked.notes(key))
    with outage():
        (tracked.HOME / f"{key}.go").touch()
        eventually(lambda: len(tracked.notes(key)) == 2)
        blocked = float(tracked.notes(key)[1])
        assert job.get_state("work", 0).status == Status.STARTED
    assert blocked < 10.0, "only one of 20 progress writes waits for the store"
    assert job.wait(PATIENCE).finished == 1
    state = job.get_state("work", 0)
    assert (state.attempt, state.message, state.payload) == (1, "step 20", {"progress": {"done": 20, "total": 20}})


def test_the_first_write_begins_an_attempt_whose_begin_failed(tracked, submit, pool, key, outage, eventually):
    if pool == "solo":
        pytest.skip("a solo worker cannot be held by a task and begin another")
    late = tracked.count.s(key + "x")
    job = submit([tracked.gate.s(key), late.clone().set(queue="nobody")], results=True)
    eventually(lambda: tracked.notes(key))
    with outage():
        Binding(job.manager.ref, 1, "work").bind(late.set(queue=pool)).apply_async()
        assert eventually(lambda: tracked.notes(key + "x")) == ["None"]
        (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 2
    assert job.get_state("work", 1).attempt == 1
    assert tracked.notes(key + "x") == ["None"]
    assert list(job.results("0")) == [(0, {"attempt": 1})], "its end was written after the outage"


@pytest.mark.slow
def test_a_sweep_does_not_mark_tasks_whose_states_wait_in_a_child(
    place, setting, tracked, pool, start_configured_worker, key, eventually
):
    if place != ("folders-sqlite", "prefork"):
        pytest.skip("one store and the pool that has children")
    cut_off = tracked.HOME / "cut-off"
    start_configured_worker({**setting.environment, "TRACKED_FAULT": "child_cut_off"}, "prefork", key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    cut_off.touch()
    (tracked.HOME / f"{key}.go").touch()
    eventually(lambda: tracked.notes(key) == ["begun 1", "ended 1"])
    owner = tracked.states.store.get_cell(job.manager.ref, "work", 0).owner
    for _ in range(4):
        renewed(tracked, owner, eventually)
    assert tracked.states.store.get_cell(job.manager.ref, "work", 0).open
    cut_off.unlink()
    assert job.wait(PATIENCE).finished == 1
    cell = tracked.states.store.get_cell(job.manager.ref, "work", 0)
    assert (cell.attempt, cell.losses) == (1, 0)
    assert tracked.notes(key) == ["begun 1", "ended 1"]


def renewed(tracked, owner, eventually):
    """Wait for the next renewal of a worker's lease."""
    last = eventually(lambda: workers(tracked.states.store).get(owner)).renewed_at
    eventually(lambda: workers(tracked.states.store)[owner].renewed_at > last)
