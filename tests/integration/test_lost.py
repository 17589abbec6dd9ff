"""Workers that are killed (rule R16): the sweep of another worker deals with their rows."""

import os
import signal

import pytest
from conftest import load

from celery_statemanager import Status, StoreUnavailable, leases
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.sweep import SweepReport
from celery_statemanager.testing.kit import workers

PATIENCE = 40
pytestmark = pytest.mark.slow(usual=1)


def state_when(job, condition, task_index=0):
    with job.subscribe("work", task_index) as events:
        for event in iter(lambda: events.get(PATIENCE), None):
            if condition(event.state):
                return event.state
    raise AssertionError(f"no matching state: {job.list_states()}")


def test_an_attempt_of_a_killed_worker_is_lost(tracked, setting, pool, start_worker, key, eventually):
    worker = start_worker(key)
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)], on_failure=tracked.callback.s().set(queue=pool))
    eventually(lambda: tracked.notes(key))
    worker.kill()
    lost = state_when(job, lambda state: state.terminal)
    assert (lost.status, lost.attempt) == (Status.LOST, 1)
    assert lost.message.startswith("lost with its worker ")
    eventually(lambda: tracked.notes(f"callback.{job.id}"))


def test_an_acks_late_task_of_a_killed_worker_runs_again(tracked, setting, pool, start_worker, key, eventually):
    worker = start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key)
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]
    assert tracked.states.store.get_cell(job.manager.ref, "work", 0).losses == 1


def test_received_rows_of_a_killed_worker_run(tracked, setting, pool, start_worker, key, eventually):
    if pool != "prefork":
        pytest.skip("only the prefork pool holds messages that it has not begun for long")
    worker = start_worker(key, "--prefetch-multiplier=3")
    rows = 6
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key) for _ in range(rows)])
    eventually(lambda: tracked.notes(key))
    wait_until_listed(tracked, job, eventually)
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key)
    assert job.wait(PATIENCE).finished == rows


@pytest.mark.places(("rabbitmq-redis", "prefork"), ("folders-sqlite", "prefork"), ("redis-redis", "prefork"))
def test_rows_that_never_began_are_not_lost_under_any_policy(tracked, setting, pool, start_worker, key, eventually):
    """The rows are acked early. Only the one that ran when its worker was killed may be lost."""
    worker = start_worker(key, "--prefetch-multiplier=2")
    rows = 4
    job = tracked.states.submit(
        (tracked.gate if row % 2 else tracked.plain_gate).s(key).set(queue=key) for row in range(rows)
    )
    eventually(lambda: len(tracked.notes(key)) == 2)
    wait_until_listed(tracked, job, eventually)
    worker.kill()
    settled = eventually(lambda: job.summary().failed == 2 and job.summary())
    assert settled.not_started == rows - 2
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key, TRACKED_VISIBILITY="2")
    assert job.wait(PATIENCE).finished == rows - 2
    assert len(tracked.notes(key)) == 2 + 2 * (rows - 2)


@pytest.mark.places(("rabbitmq-redis", "prefork"), ("redis-redis", "threads"))
@pytest.mark.parametrize("size", [70_000, pytest.param(3_000_000, marks=pytest.mark.full)])
def test_a_large_message_of_a_killed_worker_runs_again(tracked, setting, pool, start_worker, key, eventually, size):
    """It is larger than a message that may be stored with its cell; the job has it in a block."""
    worker = start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key, padding="x" * size).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key, TRACKED_VISIBILITY="2")
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]


@pytest.mark.places(("redis-redis", "threads"), ("redis-firestore", "prefork"))
def test_a_message_that_redis_restores_after_its_copy_has_ended_the_row_does_not_run(
    tracked, setting, pool, start_worker, key, eventually
):
    worker = start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    worker = start_worker(key)  # for an hour, it restores no message
    assert job.wait(PATIENCE).finished == 1
    state = job.get_state("work", 0)
    start_worker(f"{key}.other", TRACKED_VISIBILITY="1")
    eventually(lambda: "not run: " in worker.log.read_text())
    assert job.get_state("work", 0) == state
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]


@pytest.mark.full
@pytest.mark.places(("redis-redis", "prefork"))
def test_clocks_that_are_hours_apart_do_not_affect_leases(tracked, setting, start_worker, key, eventually):
    """Two workers have a store to themselves. One of them does all sweeps; the other one takes over when it is killed."""
    store = f"{setting.environment['TRACKED_STORE']}-{key}"
    own = load({**setting.environment, "TRACKED_STORE": store})
    queues = [f"{key}.clock_ahead", f"{key}.clock_behind"]
    workers = [start_worker(each, TRACKED_STORE=store, TRACKED_FAULT=each.partition(".")[2]) for each in queues]
    job = own.states.submit(own.gate.s(each).set(queue=each) for each in queues)
    eventually(lambda: all(own.notes(each) for each in queues))
    (sweeper,) = sweepers(own, eventually, leases_long=1.5, looks=4)
    assert job.summary().running == 2
    holder, other = sorted((0, 1), key=lambda row: workers[row].process.pid != sweeper)
    workers[holder].kill()
    assert state_when(job, lambda state: state.terminal, holder).status == Status.LOST
    (own.HOME / f"{queues[other]}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    own.states.store.close()
    own.app.close()


def sweepers(tracked, eventually, *, leases_long, looks):
    """Return the processes that sweep within some leases; look again if a delayed one lost its turn."""
    store, found = tracked.states.store, set()
    until = store.now() + leases_long * tracked.states.settings.lease * 1_000_000

    def is_over():
        turn = store.get_worker(leases.SWEEPER)
        found.update([int(turn.body.split(":")[1])] if turn else [])
        return store.now() > until

    eventually(is_over)
    again = len(found) > 1 and looks > 1
    return sweepers(tracked, eventually, leases_long=leases_long, looks=looks - 1) if again else found


@pytest.mark.full
@pytest.mark.places(("folders-sqlite", "prefork"), ("redis-redis", "threads"))
def test_delayed_rows_of_a_killed_worker_run(tracked, setting, start_worker, key, eventually):
    """Rows wait in the worker for their ``eta`` or ``rate_limit``; these brokers deliver them to no other worker."""
    worker = start_worker(key)
    countdown = 15  # by then the worker's record must list them
    members = [each.s(key).set(countdown=countdown) for each in (tracked.late_gate, tracked.gate)]
    members += [tracked.rate_limited.s(f"{key}.rate_limited") for _ in range(2)]
    job = tracked.states.submit(member.set(queue=key) for member in members)
    eventually(
        lambda: tracked.notes(f"{key}.rate_limited") and listed_as_received(tracked, job) == {0, 1, 2, 3} - ended(job)
    )
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key)
    assert job.wait(PATIENCE).finished == 4
    assert sorted(tracked.notes(key)) == ["begun 1", "begun 1", "ended 1", "ended 1"]


def listed_as_received(tracked, job):
    """Return the rows of a job that workers list as received and not begun."""
    reports = map(leases.Report.from_record, workers(tracked.states.store).values())
    return {each.task_index for report in reports for each in report.received if each.ref == job.manager.ref}


def ended(job):
    return {state.task_index for state in job.list_states() if state.finished}


def wait_until_listed(tracked, job, eventually):
    """Wait until two reports in a row list the same rows: then each received row is listed.

    A folder as the broker loses rows that are not.
    """
    report = eventually(lambda: last_report(tracked, job))
    while (now := next_report(tracked, job, report[0], eventually))[1:] != report[1:]:
        report = now


def last_report(tracked, job):
    """Return when the worker of a job last reported its rows, and which; None before it reports any."""
    for record in workers(tracked.states.store).values():
        report = leases.Report.from_record(record).about(job.manager.ref)
        if report.running and report.received:
            return record.renewed_at, sorted(report.running), sorted(each.task_index for each in report.received)
    return None


def next_report(tracked, job, before, eventually):
    """Wait for the next report of the worker, and return it."""
    return eventually(lambda: (now := last_report(tracked, job)) and now[0] > before and now)


def stop_outside_a_write(process, store):
    """Stop a process while it does not hold the lock of an SQLite file, so that others can write."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            return leases.check_writable(store)
        except StoreUnavailable:
            process.send_signal(signal.SIGCONT)


def test_writes_of_a_resumed_worker_are_rejected(tracked, setting, pool, start_worker, key, eventually):
    worker = start_worker(key, pool="solo")
    job = tracked.states.submit([tracked.write_after_go.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    stop_outside_a_write(worker.process, tracked.states.store)
    lost = state_when(job, lambda state: state.terminal)
    assert lost.status == Status.LOST
    (tracked.HOME / f"{key}.go").touch()
    os.kill(worker.process.pid, signal.SIGCONT)
    eventually(lambda: "Task tracked.write_after_go" in worker.log.read_text().split("received")[-1])
    assert tracked.notes(key) == ["begun 1"]
    assert job.get_state("work", 0).message == lost.message


def test_a_published_callback_is_not_due_at_the_next_sweep(tracked, submit, pool, key, eventually):
    job = submit([tracked.succeed.s()], on_settled=tracked.callback.s())
    job.wait(PATIENCE)
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)
    assert len(tracked.notes(f"callback.{job.id}")) <= 1
    swept = sweep(tracked.states)
    assert isinstance(swept, SweepReport)


def test_a_cleanly_stopped_worker_leaves_no_record(tracked, start_worker, key, eventually):
    worker = start_worker(key)
    own_suffix = f":{worker.process.pid}:"
    eventually(lambda: any(own_suffix in each for each in workers(tracked.states.store)))
    assert worker.stop() == 0
    assert not any(own_suffix in each for each in workers(tracked.states.store))
