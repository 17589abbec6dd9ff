"""Callbacks, deliveries, cancellation (rules R12, R14, R15, R17) with real workers."""

import pytest
from celery import chain, group

from celery_statemanager import JobExists, JobNotFound, Manager, Status, SubmitFailed, WaitTimeout
from celery_statemanager.integration.binding import Binding
from celery_statemanager.leases import cell_name

PATIENCE = 30


def callbacks(tracked, job):
    return sorted(tracked.notes(f"callback.{job.id}"))


def test_the_success_callback_runs_once_with_the_job_id(tracked, submit, eventually):
    callback = tracked.callback
    job = submit(
        [tracked.succeed.s(i) for i in range(5)],
        on_success=callback.s(),
        on_failure=callback.s(),
        on_settled=callback.si(),
    )
    job.wait(PATIENCE)
    eventually(lambda: len(callbacks(tracked, job)) == 2)
    assert callbacks(tracked, job) == ["settled [] False", f"success ['{job.id}'] False"]
    record = job._tracker.store.get_job(job.manager.ref.key)
    assert eventually(lambda: not job._tracker.store.get_job(record.key).due)


def test_the_failure_callback_runs_once_for_many_failures(tracked, submit, eventually):
    callback = tracked.callback
    job = submit(
        [tracked.fail.s() for _ in range(4)], on_success=callback.s(), on_failure=callback.s(), on_settled=callback.s()
    )
    assert job.wait(PATIENCE).failed == 4
    eventually(lambda: len(callbacks(tracked, job)) == 2)
    assert callbacks(tracked, job) == [f"failure ['{job.id}'] False", f"settled ['{job.id}'] False"]


def test_a_callback_that_is_published_again_does_not_run_again(tracked, submit, pool, key, eventually):
    job = submit([tracked.succeed.s()], on_success=tracked.callback.s())
    job.wait(PATIENCE)
    eventually(lambda: callbacks(tracked, job))
    bound = Binding(job.manager.ref, -1, "success").bind(tracked.callback.s(job.id).set(queue=pool))
    bound.apply_async()
    wait_for_earlier_messages(tracked, submit, key)
    assert len(callbacks(tracked, job)) == 1


def wait_for_earlier_messages(tracked, submit, key):
    """Return once the worker has processed the messages sent so far; it takes them in order."""
    submit([tracked.count.s(f"{key}.earlier") for _ in range(4)]).wait(PATIENCE)


def test_a_finished_cell_does_not_run_again(tracked, submit, pool, key):
    job = submit([tracked.count.s(key), tracked.gate.s(key + "x")])
    with job.subscribe("work", 0) as events:
        while not (event := events.get(PATIENCE)).state.finished:
            assert event
    Binding(job.manager.ref, 0, "work").bind(tracked.count.s(key).set(queue=pool)).apply_async()
    (tracked.HOME / f"{key}x.go").touch()
    job.wait(PATIENCE)
    wait_for_earlier_messages(tracked, submit, key)
    assert tracked.notes(key) == ["1"]


def test_a_delivery_of_a_running_cell_is_dropped_while_its_worker_is_alive(tracked, submit, pool, key, eventually):
    if pool == "solo":
        pytest.skip("a solo worker cannot receive a second message while the first one runs")
    job = submit([tracked.gate.s(key)])
    eventually(lambda: tracked.notes(key))
    wait_until_a_worker_lists_row_0(tracked, job, eventually)
    Binding(job.manager.ref, 0, "work").bind(tracked.gate.s(key).set(queue=pool)).apply_async()
    wait_for_earlier_messages(tracked, submit, key)
    (tracked.HOME / f"{key}.go").touch()
    job.wait(PATIENCE)
    assert tracked.notes(key) == ["begun 1", "ended 1"]


def wait_until_a_worker_lists_row_0(tracked, job, eventually):
    name = cell_name(job.manager.ref, "work", 0)
    eventually(lambda: any(name in worker.body for worker in tracked.states.store.list_workers()))


def test_a_settled_job_skips_later_deliveries(tracked, submit, pool, key):
    job = submit([tracked.fail.s()])
    job.wait(PATIENCE)
    Binding(job.manager.ref, 0, "work").bind(tracked.count.s(key).set(queue=pool)).apply_async()
    wait_for_earlier_messages(tracked, submit, key)
    assert tracked.notes(key) == []
    assert job.get_state().status == Status.FAILED


def test_a_message_of_a_deleted_job_is_dropped(tracked, submit, pool, key):
    job = submit([tracked.succeed.s()])
    job.wait(PATIENCE)
    ref = job.manager.ref
    job.delete()
    Binding(ref, 0, "work").bind(tracked.count.s(key).set(queue=pool)).apply_async()
    wait_for_earlier_messages(tracked, submit, key)
    assert tracked.notes(key) == []
    with pytest.raises(JobNotFound):
        tracked.states.job(ref.key.job_id)


def test_cancel_stops_a_running_task_at_its_next_write_and_vetoes_waiting_rows(tracked, submit, key, eventually):
    waiting = [tracked.count.s(f"{key}.never").set(countdown=3600) for _ in range(3)]
    job = submit(
        [tracked.wait_for_cancel.s(key), *waiting], on_failure=tracked.callback.s(), on_settled=tracked.callback.s()
    )
    eventually(lambda: tracked.notes(key))
    assert job.cancel("user asked") is True
    assert job.cancel("again") is False
    assert job.get_state("work", 3).message == "user asked"
    (tracked.HOME / f"{key}.go").touch()
    summary = job.wait(PATIENCE)
    assert (summary.failed, summary.lowest.status) == (4, Status.CANCELLED)
    eventually(lambda: callbacks(tracked, job))
    assert callbacks(tracked, job) == [f"settled ['{job.id}'] False"]
    assert tracked.notes(key) == ["running"]


@pytest.mark.slow
def test_cancel_ends_running_and_waiting_rows_and_keeps_finished_ones(tracked, submit, pool, key, eventually):
    if pool == "solo":
        pytest.skip("a solo worker cannot run another row while one waits")
    members = [
        tracked.succeed.s(0),
        tracked.write_after_go.s(key),
        *(tracked.count.s(f"{key}.never") for _ in range(5)),
    ]
    held = [member.set(countdown=3600) if row > 1 else member for row, member in enumerate(members)]
    job = submit(held, on_success=tracked.callback.s(), on_settled=tracked.callback.s())
    eventually(lambda: tracked.notes(key) and job.summary().finished == 1)
    assert job.cancel("enough") is True
    (tracked.HOME / f"{key}.go").touch()
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.failed) == (1, 6)
    assert {job.get_state("work", row).status for row in range(1, 7)} == {Status.CANCELLED}
    eventually(lambda: callbacks(tracked, job))
    assert callbacks(tracked, job) == [f"settled ['{job.id}'] False"]
    assert (tracked.notes(key), tracked.notes(f"{key}.never")) == (["begun 1"], [])


def test_a_wait_timeout_carries_the_summary(tracked, submit):
    job = submit([tracked.succeed.s().set(countdown=3600)])
    with pytest.raises(WaitTimeout) as caught:
        job.wait(0.05)
    assert caught.value.summary.not_started == 1


def test_submit_accepts_generators_and_groups(tracked, pool):
    app_submit = tracked.states.submit
    generated = app_submit(tracked.succeed.s(i).set(queue=pool) for i in range(3))
    grouped = app_submit(group(tracked.succeed.s(i).set(queue=pool) for i in range(3)))
    assert generated.wait(PATIENCE).finished == grouped.wait(PATIENCE).finished == 3


def test_a_rerun_with_a_run_token_starts_empty(tracked, submit, key):
    first = submit([tracked.succeed.s()], job_id=key)
    first.wait(PATIENCE)
    with pytest.raises(JobExists):
        submit([tracked.succeed.s()], job_id=key)
    second = submit([tracked.count.s(key)], job_id=key, run_token="again")
    second.wait(PATIENCE)
    assert tracked.notes(key) == ["1"]
    assert tracked.states.job(key, "again").summary().finished == 1


def test_submit_creates_no_job_for_an_invalid_member(tracked, key):
    members = (member for member in [tracked.succeed.s(), chain(tracked.succeed.s(), tracked.count.si(key))])
    with pytest.raises(ValueError, match="has two stages with the tag 'work'"):
        tracked.states.submit(members, job_id=key)
    with pytest.raises(JobNotFound):
        tracked.states.job(key)


def test_submit_rejects_wrong_arguments_before_it_creates_the_job(tracked, key):
    with pytest.raises(TypeError, match=r"member 1, task tracked.count: .*argument"):
        tracked.states.submit([tracked.count.s(key), tracked.count.s()], job_id=key)
    with pytest.raises(JobNotFound):
        tracked.states.job(key)


@pytest.mark.parametrize("container", [list, iter])
def test_submit_creates_no_job_if_a_message_cannot_be_made(tracked, pool, key, container):
    members = [tracked.count.s(key).set(queue=pool), tracked.succeed.s(object()).set(queue=pool)]
    with pytest.raises(SubmitFailed, match="failed at member 1: EncodeError") as caught:
        tracked.states.submit(container(members), job_id=key)
    assert (caught.value.task_index, caught.value.published, caught.value.job) == (1, 0, None)
    with pytest.raises(JobNotFound):
        tracked.states.job(key)
    assert tracked.states.submit([tracked.succeed.s().set(queue=pool)], job_id=key).wait(PATIENCE).finished == 1
    assert tracked.notes(key) == [], "nothing of the first call was sent"


@pytest.mark.parametrize("kind", ["stateful_callback", "plain_callback"])
@pytest.mark.parametrize("immutable", [False, True], ids=["job_id", "immutable"])
def test_a_callback_finds_the_run_that_it_belongs_to(tracked, submit, eventually, key, kind, immutable):
    signature = getattr(tracked, kind).signature((key,), immutable=immutable)
    job_id, run_token = f"runs-{key}", "second"
    other = Manager.create(tracked.states.store, job_id, num_tasks=1, run_token="first")
    submit([tracked.succeed.s(), tracked.succeed.s()], job_id=job_id, run_token=run_token, on_success=signature)
    expected = f"{job_id} {run_token} 2 {[] if immutable else [job_id]}"
    assert eventually(lambda: tracked.notes(key)) == [expected]
    with pytest.raises(JobNotFound, match=r"runs of it: 'first', 'second'; .* states\.current_job\(\)"):
        tracked.states.job(job_id)
    other.delete_job()
