"""Task classes that change or hold back the messages of a job (rules R12, R15)."""

import pytest
from celery import chain

from celery_statemanager import Status

PATIENCE = 30


@pytest.fixture
def lock(tracked):
    """Hold the lock of a task class."""
    file = tracked.HOME / "tracked.locked.lock"
    file.touch()
    yield
    file.unlink()


def test_headers_that_a_task_class_drops_are_put_back(tracked, submit, eventually):
    first, second = tracked.retry_for_tenant, tracked.succeed
    job = submit(
        [chain(first.s(), second.s()), chain(second.s(), first.s())], on_success=tracked.callback_of_tenant.s()
    )
    summary = job.wait(PATIENCE)
    assert summary.finished == 4, job.list_states()
    assert {state.message for state in job.list_states("tenant")} == {"t"}
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    assert tracked.notes(f"callback.{job.id}") == [job.id]


def test_a_member_that_its_task_class_does_not_send_is_rejected(tracked, submit, lock):
    job = submit([tracked.locked.s(), tracked.succeed.s(), chain(tracked.locked.s(), tracked.succeed.s())])
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.failed, summary.not_run) == (1, 2, 1), job.list_states()
    message = "not published: apply_async of Locked sent no message for task tracked.locked"
    assert {(state.status, state.message) for state in job.list_states("locked")} == {(Status.REJECTED, message)}


def test_a_later_stage_that_its_task_class_does_not_send_is_rejected(tracked, submit, lock):
    job = submit([chain(tracked.succeed.s(), tracked.locked.s())])
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.failed) == (1, 1), job.list_states()
    assert job.get_state("locked", 0).message.startswith("not published: apply_async of Locked")


def test_a_retry_that_its_task_class_does_not_send_is_rejected(tracked, submit):
    job = submit([tracked.lock_and_retry.s()])
    assert job.wait(PATIENCE).failed == 1
    state = job.get_state("locked", 0)
    assert (state.status, state.attempt) == (Status.REJECTED, 1)
    assert state.message == "not published: apply_async of Locked sent no message for task tracked.lock_and_retry"
    (tracked.HOME / "tracked.lock_and_retry.lock").unlink()


def test_a_callback_that_its_task_class_does_not_send_is_rejected(tracked, submit, lock, eventually):
    job = submit([tracked.succeed.s()], on_settled=tracked.locked.s())
    job.wait(PATIENCE)
    cell = eventually(lambda: tracked.states.store.get_cell(job.manager.ref, "settled", -1))
    assert (cell.status, cell.message.partition(":")[0]) == (Status.REJECTED, "not published")
