"""Pausing a job while its messages are in the queue and its tasks run (rule R19)."""

import pytest
from conftest import FAULT_PLACES, PATIENCE, PLACES

from celery_statemanager.indexset import IndexSet


def returned(tracked, job):
    return tracked.states.store.get_outbox(job.manager.ref).returned


@pytest.mark.places(("redis-redis", "prefork"), ("folders-sqlite", "threads"), usual=2)
def test_a_pause_holds_back_rows_that_have_not_begun(tracked, pool, key, submit, eventually):
    gates = [f"{key}.{row}" for row in range(8)]
    job = submit([tracked.gate.s(each) for each in gates])
    begun = eventually(lambda: [row for row in range(8) if tracked.notes(gates[row])])
    assert job.pause("deploying")
    assert not job.pause("again")
    assert (job.paused, job.pause_reason) == (True, "deploying")
    for gate in gates:
        (tracked.HOME / f"{gate}.go").touch()
    held = eventually(lambda: job.summary().running == 0 and returned(tracked, job).waiting)
    eventually(lambda: job.summary().finished + len(returned(tracked, job).waiting) == 8)
    held = returned(tracked, job).waiting
    assert held
    assert not held.within(IndexSet(begun))
    assert job.resume()
    assert not job.resume()
    assert job.wait(PATIENCE).finished == 8
    assert [tracked.notes(gate) for gate in gates] == [["begun 1", "ended 1"]] * 8


@pytest.mark.places(*FAULT_PLACES)
def test_a_pause_while_eight_rows_run_holds_back_the_others(tracked, setting, key, start_worker, eventually):
    gates = [f"{key}.{row}" for row in range(12)]
    job = tracked.states.submit(tracked.gate.s(each).set(queue=key) for each in gates)
    start_worker(key, "--concurrency=8")
    begun = eventually(lambda: len(rows := [row for row in range(12) if tracked.notes(gates[row])]) == 8 and rows)
    assert job.pause("deploying")
    for gate in gates:
        (tracked.HOME / f"{gate}.go").touch()
    eventually(lambda: job.summary().finished + len(returned(tracked, job).waiting) == 12)
    assert returned(tracked, job).waiting == IndexSet(range(12)).without(IndexSet(begun))
    assert job.summary().running == 0
    assert job.resume()
    assert job.wait(PATIENCE).finished == 12
    assert [tracked.notes(gate) for gate in gates] == [["begun 1", "ended 1"]] * 12


@pytest.mark.places(*PLACES, usual=1)
def test_a_job_that_is_paused_before_it_is_published_waits(tracked, pool, key, submit, eventually):
    gates = [f"{key}.{row}" for row in range(4)]
    job = submit([tracked.gate.s(each) for each in gates], max_in_flight=1)
    job.pause()
    assert job.pause_reason is None
    for gate in gates:
        (tracked.HOME / f"{gate}.go").touch()
    eventually(lambda: job.summary().running == 0)
    assert tracked.states.store.get_outbox(job.manager.ref).claimed == 1
    job.resume()
    assert job.wait(PATIENCE).finished == 4


@pytest.mark.places(*PLACES, usual=1)
def test_the_later_stages_and_retries_of_a_paused_job_go_on(tracked, pool, key, submit, eventually):
    job = submit([tracked.gate.s(key) | tracked.second.s()])
    eventually(lambda: tracked.notes(key))
    job.pause("why")
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 2
    assert not job.pause(), "it has settled"


@pytest.mark.places(*PLACES, usual=1)
def test_the_callback_of_a_paused_job_runs(tracked, pool, key, submit, eventually):
    failing = tracked.states.tag(tracked.fail.si(), "second")
    members = [tracked.gate.s(key) | failing, tracked.succeed.s(1)]
    job = submit(members, max_in_flight=1, on_failure=tracked.callback.s())
    eventually(lambda: tracked.notes(key))
    job.pause("deploying")
    (tracked.HOME / f"{key}.go").touch()
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    summary = job.summary()
    assert (job.paused, summary.failed, summary.not_started) == (True, 1, 1), "only the second row is held back"
    assert job.resume()
    assert job.wait(PATIENCE).finished == 2
    assert len(tracked.notes(f"callback.{job.id}")) == 1


@pytest.mark.places(*PLACES, usual=1)
def test_plain_tasks_run_although_their_job_is_paused(tracked, setting, pool, key, start_worker):
    job = tracked.states.submit([tracked.plain.s(key).set(queue=key)])
    job.pause()
    start_worker(key)
    assert job.wait(PATIENCE).finished == 1


@pytest.mark.places(*PLACES, usual=1)
def test_a_cancelled_job_cannot_be_paused(tracked, pool, key, submit):
    job = submit([tracked.succeed.s(1)])
    job.wait(PATIENCE)
    assert not job.pause()
    assert not job.resume()
    assert not job.paused
