"""Jobs that tolerate some failed rows (rule R22)."""

import re
from datetime import datetime, timezone

import pytest
from celery import chain
from conftest import PATIENCE, PLACES
from test_eager import new_app

from celery_statemanager import StateManager, Status
from celery_statemanager.indexset import IndexSet


def submit_policed(tracked, submit, members, **options):
    """Submit members with a callback for each latch."""
    callbacks = {f"on_{name}": tracked.callback.s(name) for name in ("success", "failure", "settled")}
    return submit(members, **callbacks, **options)


def callbacks_run(tracked, job):
    return sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}"))


def latches(tracked, job):
    return sorted(name for name, latch in tracked.states.job(job.id)._record.latches.items() if latch.decided_at)


@pytest.mark.places(*PLACES, usual=3)
@pytest.mark.parametrize(("max_failed", "limit"), [(2, 2), ("50%", 2)])
def test_as_many_failed_rows_as_tolerated_are_a_success(tracked, pool, submit, eventually, max_failed, limit):
    members = [
        tracked.succeed.s(0),
        tracked.fail.s(),
        chain(tracked.succeed.s(2), tracked.second.s()),
        tracked.fail.s(),
    ]
    job = submit_policed(tracked, submit, [*members, tracked.succeed.s(4)], max_failed=max_failed)
    summary = job.wait(PATIENCE)
    assert (summary.failed_rows, summary.max_failed, summary.failed_indexes) == (2, limit, IndexSet([1, 3]))
    eventually(lambda: callbacks_run(tracked, job) == ["settled", "success"])
    assert latches(tracked, job) == ["settled", "success"]


@pytest.mark.places(("folders-sqlite", "prefork"), ("redis-redis", "threads"), usual=2)
def test_one_failed_row_too_many_cancels_the_rest(tracked, pool, key, submit, eventually):
    members = [tracked.gate.s(key), tracked.fail_beside.s(key)]
    members += [tracked.count.s(f"{key}.{row}") for row in range(2, 6)]
    job = submit_policed(tracked, submit, members, max_failed=0, max_in_flight=2)
    summary = eventually(lambda: found if (found := job.summary()).failed == 5 else None)
    reason = "1 row failed, at most 0 may (max_failed)"
    assert (summary.running, summary.failed_rows) == (1, 1)
    assert job.get_state(task_index=5).message == reason
    eventually(lambda: callbacks_run(tracked, job) == ["failure"])
    (tracked.HOME / f"{key}.go").touch()
    job.wait(PATIENCE)
    assert [job.get_state(task_index=row).status for row in range(3)] == [
        Status.FINISHED,
        Status.FAILED,
        Status.CANCELLED,
    ]
    eventually(lambda: callbacks_run(tracked, job) == ["failure", "settled"])
    assert not any(tracked.notes(f"{key}.{row}") for row in range(2, 6))


@pytest.mark.places(*PLACES, usual=1)
def test_a_rerun_counts_only_its_own_failures(tracked, pool, key, submit, eventually):
    members = [tracked.fail_until_fixed.s(key), tracked.fail_until_fixed.s(key), tracked.count.s(f"{key}.2")]
    job = submit_policed(tracked, submit, members, max_failed=1, max_in_flight=1)
    summary = job.wait(PATIENCE)
    assert (summary.failed_rows, summary.failed, tracked.notes(f"{key}.2")) == (2, 3, [])
    (tracked.HOME / f"{key}.fixed").touch()
    assert job.rerun("failed").rows == IndexSet([0, 1, 2])
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.failed_rows, summary.generation) == (3, 0, 2)
    eventually(lambda: callbacks_run(tracked, job) == ["failure", "settled", "settled.2", "success.2"])


@pytest.mark.places(*PLACES, usual=1)
def test_rows_that_fail_together_send_on_failure_once(tracked, pool, key, submit, eventually):
    members = [tracked.fail.s() for _ in range(30)]
    job = submit_policed(tracked, submit, members, max_failed="10%")
    summary = job.wait(PATIENCE)
    assert 4 <= summary.failed_rows <= 30
    eventually(lambda: callbacks_run(tracked, job) == ["failure", "settled"])
    assert latches(tracked, job) == ["failure", "settled"]


@pytest.mark.parametrize("max_failed", [-1, 1.5, True, "200%", "2", "-1%", "", "nan%"])
def test_a_wrong_max_failed_is_refused_before_anything_is_written(max_failed):
    app = new_app()
    states = StateManager(app)

    def members():
        raise AssertionError("the members were read")
        yield

    with pytest.raises((TypeError, ValueError), match="max_failed must be"):
        states.submit(members(), job_id="refused", max_failed=max_failed)
    assert states.store.list_jobs().jobs == []


@pytest.mark.parametrize(("max_failed", "begun"), [(None, 4), (0, 1), (1, 2), ("75%", 4)])
def test_in_eager_mode_too_many_failed_rows_stop_the_rows_after_them(max_failed, begun):
    app = new_app()
    states = StateManager(app)
    ran = []

    @app.task(shared=False)
    def fail(row):
        ran.append(row)
        raise ValueError(row)

    @app.task(shared=False)
    def note(_, name):
        ran.append(name)

    callbacks = {f"on_{name}": note.s(name) for name in ("success", "failure", "settled")}
    members = [fail.s(row) for row in range(3)] + [note.si("last", "last")]
    job = states.submit(members, max_failed=max_failed, **callbacks)
    summary = job.summary()
    assert [each for each in ran if each in (0, 1, 2, "last")] == [0, 1, 2, "last"][:begun]
    outcome = {"failure", "settled"} if max_failed != "75%" else {"success", "settled"}
    assert {each for each in ran if each in ("success", "failure", "settled")} == outcome
    assert summary.failed_rows == min(begun, 3)


@pytest.mark.places(("folders-sqlite", "prefork"), ("redis-redis", "threads"), usual=2)
def test_a_job_is_cancelled_when_its_deadline_passes(tracked, pool, key, submit, eventually):
    members = [tracked.wait_for_cancel.s(key), *[tracked.count.s(f"{key}.{row}") for row in range(1, 4)]]
    job = submit_policed(tracked, submit, members, deadline=5, max_in_flight=1)
    eventually(lambda: job.summary().failed == 3)
    (tracked.HOME / f"{key}.go").touch()
    job.wait(PATIENCE)
    assert re.fullmatch(r"its deadline of \S+ \S+ UTC passed", job.get_state(task_index=3).message)
    assert [job.get_state(task_index=row).status for row in range(4)] == [Status.CANCELLED] * 4
    eventually(lambda: callbacks_run(tracked, job) == ["settled"])
    assert tracked.notes(key) == ["running"]
    assert not any(tracked.notes(f"{key}.{row}") for row in range(1, 4))


@pytest.mark.places(*PLACES, usual=2)
def test_rows_that_are_delivered_after_the_deadline_do_not_run(tracked, pool, key, submit, eventually):
    members = [tracked.count.s(f"{key}.{row}") for row in range(3)]
    job = submit_policed(tracked, submit, members, deadline=0.000001)
    summary = job.wait(PATIENCE)
    assert (summary.failed, summary.failed_rows) == (3, 0)
    eventually(lambda: callbacks_run(tracked, job) == ["settled"])
    assert not any(tracked.notes(f"{key}.{row}") for row in range(3))


@pytest.mark.parametrize("deadline", [0, -1, True, float("nan"), datetime(2000, 1, 1, tzinfo=timezone.utc)])
def test_a_wrong_deadline_is_refused_before_anything_is_written(deadline):
    states = StateManager(new_app())
    with pytest.raises((TypeError, ValueError), match="deadline must"):
        states.submit(iter(()), job_id="refused", deadline=deadline)
    assert states.store.list_jobs().jobs == []


def test_in_eager_mode_no_row_runs_after_the_deadline():
    app = new_app()
    states = StateManager(app)
    ran = []

    @app.task(shared=False)
    def work(row):
        ran.append(row)

    @app.task(shared=False)
    def note(_, name):
        ran.append(name)

    job = states.submit([work.s(0), work.s(1)], deadline=0.000001, on_settled=note.s("settled"), on_success=note.s("-"))
    assert ran == ["settled"]
    assert "its deadline of" in job.get_state(task_index=1).message
