"""Results of rows in real workers (rule R21)."""

import signal
from datetime import datetime, timedelta, timezone

import pytest
from conftest import PATIENCE, PLACES, SLOW_PLACES

from celery_statemanager import ResultUnavailable, TaskFailed


@pytest.mark.places(*PLACES, usual=8)
def test_a_job_returns_what_its_tasks_have_returned(tracked, submit, key):
    again = tracked.states.tag(tracked.one_argument.s(), "again")
    values = [None, 1.5, "ß", {"a": [1, {"b": None}]}, list(range(2_000))]
    members = [
        *(tracked.one_argument.s(value) for value in values),
        tracked.succeed.s("chain") | again,
        tracked.replaced.s(key),
        tracked.return_retries.s(),
        tracked.plain.s(key),
        tracked.now.s(),
        tracked.returns_object.s(),
    ]
    job = submit(members, results=True)
    assert job.wait(PATIENCE).failed == 0
    found = dict(job.results("0-9"))
    assert timedelta(0) <= datetime.now(timezone.utc) - found.pop(9) < timedelta(hours=1)
    assert [*found.values()] == [*values, "chain", "replaced", 1, None]
    with pytest.raises(ResultUnavailable, match=rf"task 10 of job '{job.id}': it cannot be encoded as JSON"):
        job.get(PATIENCE)


@pytest.mark.places(*PLACES, usual=2)
def test_results_are_there_as_soon_as_their_rows_have_finished(tracked, submit, key, eventually):
    job = submit([tracked.succeed.s("first"), tracked.gate.s(key)], results=True)
    assert eventually(lambda: list(job.results())) == [(0, "first")]
    (tracked.HOME / f"{key}.go").touch()
    assert job.get(PATIENCE) == ["first", {"attempt": 1}]


@pytest.mark.places(*PLACES, usual=2)
def test_a_row_that_failed_has_a_result_after_its_rerun(tracked, submit, key):
    job = submit([tracked.succeed.s(0), tracked.fail_until_fixed.s(key), tracked.fail_until_fixed.s(key)], results=True)
    with pytest.raises(TaskFailed) as caught:
        job.get(PATIENCE)
    assert (caught.value.task_index, caught.value.tag, caught.value.message) == (1, "work", "ValueError: broken")
    assert list(job.results()) == [(0, 0)]
    (tracked.HOME / f"{key}.fixed").touch()
    job.rerun("failed")
    assert job.get(PATIENCE) == [0, 2, 2]


@pytest.mark.places(*PLACES, usual=2)
def test_a_job_keeps_only_the_results_that_its_tasks_ask_for(tracked, submit, key):
    job = submit([tracked.succeed.s(0), tracked.now.s(), tracked.succeed.s(2)])
    job.wait(PATIENCE)
    assert [row for row, _ in job.results()] == [1]


@pytest.mark.slow
@pytest.mark.places(*SLOW_PLACES)
def test_the_result_is_that_of_the_attempt_that_ended_the_row(tracked, key, start_worker):
    """The worker of the first attempt is killed between the end of the body and the write of FINISHED."""
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_storing_result")
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)], results=True)
    (tracked.HOME / f"{key}.go").touch()
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    assert tracked.notes(key) == ["begun 1", "ended 1"]
    assert list(job.results()) == []
    start_worker(key)
    assert job.get(PATIENCE) == [{"attempt": 2}]
