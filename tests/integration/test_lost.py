"""Workers that die without a word (rule R16): killed for real, found by the sweep of another."""

import os
import re
import signal

import pytest
from conftest import load

from celery_statemanager import Status, StoreUnavailable, leases
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.sweep import SweepReport
from celery_statemanager.testing.kit import workers

PATIENCE = 40
pytestmark = pytest.mark.slow


def state_when(job, condition, task_index=0):
    with job.subscribe("work", task_index) as events:
        for event in iter(lambda: events.get(PATIENCE), None):
            if condition(event.state):
                return event.state
    raise AssertionError(f"never: {job.list_states()}")


def test_an_attempt_of_a_killed_worker_is_lost(tracked, setting, pool, victim, key, eventually):
    worker = victim(key)
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)], on_failure=tracked.callback.s().set(queue=pool))
    eventually(lambda: tracked.notes(key))
    worker.kill()
    lost = state_when(job, lambda state: state.terminal)
    assert (lost.status, lost.attempt) == (Status.LOST, 1)
    assert lost.message.startswith("lost with its worker ")
    eventually(lambda: tracked.notes(f"callback.{job.id}"))


def test_an_acks_late_attempt_of_a_killed_worker_is_run_again(tracked, setting, pool, victim, key, eventually):
    worker = victim(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    victim(key)
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]
    assert tracked.states.store.get_cell(job.manager.ref, "work", 0).losses == 1


def test_rows_that_a_killed_worker_had_received_are_run(tracked, setting, pool, victim, key, eventually):
    if pool != "prefork":
        pytest.skip("only the prefork pool holds messages for long that it has not begun")
    worker = victim(key, "--prefetch-multiplier=3")
    rows = 6
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key) for _ in range(rows)])
    eventually(lambda: tracked.notes(key))
    held = eventually(lambda: holding(tracked, key))
    while (now := said_again(tracked, key, held[0], eventually))[1:] != held[1:]:
        held = now
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    victim(key)
    assert job.wait(PATIENCE).finished == rows


@pytest.mark.places(("redis-redis", "prefork"))
def test_hosts_whose_clocks_are_hours_apart_take_each_other_neither_for_dead_nor_for_alive(
    tracked, setting, victim, key, eventually
):
    """They share a store with nobody else: one takes all turns to sweep, the other has them when he is gone."""
    store = f"{setting.environment['TRACKED_STORE']}-{key}"
    own = load({**setting.environment, "TRACKED_STORE": store})
    queues = [f"{key}.clock_ahead", f"{key}.clock_behind"]
    workers = [victim(each, TRACKED_STORE=store, TRACKED_FAULT=each.partition(".")[2]) for each in queues]
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
    """The processes that take turns to sweep within some leases; looks again if one that was held up lost its turn."""
    store, found = tracked.states.store, set()
    until = store.now() + leases_long * tracked.states.settings.lease * 1_000_000

    def is_over():
        turn = store.get_worker(leases.SWEEPER)
        found.update([int(turn.body.split(":")[1])] if turn else [])
        return store.now() > until

    eventually(is_over)
    again = len(found) > 1 and looks > 1
    return sweepers(tracked, eventually, leases_long=leases_long, looks=looks - 1) if again else found


@pytest.mark.places(("folders-sqlite", "prefork"), ("redis-redis", "threads"), usual=2)
def test_rows_that_a_killed_worker_held_back_are_run_or_marked(tracked, setting, victim, key, eventually):
    """For their time (``eta``, ``countdown``) or for their turn (``rate_limit``), with brokers that keep them to it."""
    worker = victim(key)
    countdown = 15  # the worker must have said that it holds them by then
    members = [each.s(key).set(countdown=countdown) for each in (tracked.late_gate, tracked.gate)]
    members += [tracked.rare.s(f"{key}.rare") for _ in range(2)]
    job = tracked.states.submit(member.set(queue=key) for member in members)
    eventually(lambda: tracked.notes(f"{key}.rare") and held(tracked, job) == {0, 1, 2, 3} - ended(job))
    worker.kill()
    (tracked.HOME / f"{key}.go").touch()
    victim(key)
    assert job.wait(PATIENCE).finished == 3
    state = job.get_state("work", 1)
    assert state.status == Status.LOST
    assert re.fullmatch("lost with its worker .* before it began", state.message)
    assert tracked.notes(key) == ["begun 1", "ended 1"]


def held(tracked, job):
    """The rows of a job that workers say they have received and not begun."""
    reports = map(leases.Report.from_record, workers(tracked.states.store).values())
    return {each.task_index for report in reports for each in report.received if each.ref == job.manager.ref}


def ended(job):
    return {state.task_index for state in job.list_states() if state.finished}


def holding(tracked, key):
    """When the victim last said what it holds, and what; the same twice: nothing was received since unsaid.

    A row that was is gone with a broker made of folders.
    """
    for record in workers(tracked.states.store).values():
        report = leases.Report.from_record(record)
        if report.running and any(key in (each.message or "") for each in report.received):
            return record.renewed_at, sorted(report.running), sorted(each.task_index for each in report.received)
    return None


def said_again(tracked, key, before, eventually):
    """What the victim says that it holds the next time."""
    return eventually(lambda: (now := holding(tracked, key)) and now[0] > before and now)


def stop_outside_of_a_write(process, store):
    """Stop a process, but not while it holds the lock of an SQLite file, which would keep all others from writing."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            return leases.try_a_write(store)
        except StoreUnavailable:
            process.send_signal(signal.SIGCONT)


def test_a_stopped_worker_that_comes_back_is_refused(tracked, setting, pool, victim, key, eventually):
    worker = victim(key, pool="solo")
    job = tracked.states.submit([tracked.late_word.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    stop_outside_of_a_write(worker.process, tracked.states.store)
    lost = state_when(job, lambda state: state.terminal)
    assert lost.status == Status.LOST
    (tracked.HOME / f"{key}.go").touch()
    os.kill(worker.process.pid, signal.SIGCONT)
    eventually(lambda: "Task tracked.late_word" in worker.log.read_text().split("received")[-1])
    assert tracked.notes(key) == ["begun 1"]
    assert job.get_state("work", 0).message == lost.message


def test_a_callback_that_was_decided_and_not_published_is_published(tracked, submit, pool, key, eventually):
    job = submit([tracked.succeed.s()], on_settled=tracked.callback.s())
    job.wait(PATIENCE)
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)
    assert len(tracked.notes(f"callback.{job.id}")) <= 1
    swept = sweep(tracked.states)
    assert isinstance(swept, SweepReport)


def test_a_clean_stop_leaves_no_record(tracked, victim, key, eventually):
    worker = victim(key)
    its_own = f":{worker.process.pid}:"
    eventually(lambda: any(its_own in each for each in workers(tracked.states.store)))
    assert worker.stop() == 0
    assert not any(its_own in each for each in workers(tracked.states.store))
