"""``submit`` while the store fails, and when it is interrupted (rule R12)."""

import pytest
from celery import Celery
from celery.signals import before_task_publish

from celery_statemanager import StatefulTask, StateManager, Status, StoreUnavailable, SubmitFailed
from celery_statemanager.integration.submission.submit import Timings, submit
from celery_statemanager.testing import FaultyStore


@pytest.fixture
def states():
    app = Celery("submitter", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = FaultyStore(states.store)
    yield states
    app.close()


@pytest.fixture
def task(states):
    @states.app.task(shared=False, base=StatefulTask)
    def task(): ...

    return task


def submit_with(states, tasks, **timings):
    """Submit a job with other periods than the default ones."""
    return submit(states, tasks, job_id=None, run_token=None, tags=None, callbacks={}, timings=Timings(**timings))


def test_submit_waits_for_a_store_that_is_briefly_unavailable(states, task):
    states.store.lose_response("update_job", applied=False, times=2)
    job = states.submit([task.s(), task.s()])
    assert states.store.get_job(job.manager.ref.key).submission.done


def test_submit_fails_when_the_store_stays_unavailable(states, task):
    states.store.lose_response("update_job", applied=False, times=10)
    with pytest.raises(SubmitFailed) as caught:
        submit_with(states, [task.s(), task.s()], patience=0.0)
    assert (caught.value.published, caught.value.total) == (2, 2)
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert f"2 of 2 messages: StoreUnavailable: {caught.value.__cause__}; the job" in str(caught.value)


@pytest.mark.parametrize("cancelling", [True, False])
def test_a_failed_submit_reports_whether_the_job_is_cancelled(states, task, cancelling, monkeypatch, caplog):
    def fail(*_, **__):
        if not cancelling:
            states.store.lose_response("update_job", applied=False, times=10)
        raise OSError("no broker")

    monkeypatch.setattr(task._get_current_object(), "apply_async", fail)
    with pytest.raises(SubmitFailed) as caught:
        states.submit([task.s()])
    assert caught.value.cancelled is cancelling
    assert ("the job is cancelled;" in str(caught.value)) is cancelling
    assert ("a sweep will cancel it" in str(caught.value)) is not cancelling
    assert ("left to the sweep" in caplog.text) is not cancelling


def test_submit_publishes_while_the_store_is_unavailable(states, task, caplog):
    states.store.lose_response("update_job", applied=False)
    assert submit_with(states, [task.s() for _ in range(3)], lease=0.0).num_tasks == 3
    assert "cannot record how many messages of job" in caplog.text


def test_an_interrupted_submit_cancels_the_job(states, task):
    def interrupt(headers, **_):
        if headers["id"].endswith(".3.0"):
            raise KeyboardInterrupt

    before_task_publish.connect(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            states.submit([task.s() for _ in range(5)], job_id="interrupted")
    finally:
        before_task_publish.disconnect(interrupt)
    state = states.job("interrupted").get_state("default", 4)
    assert (state.status, state.message) == (Status.CANCELLED, "submit failed after 3 of 5")
