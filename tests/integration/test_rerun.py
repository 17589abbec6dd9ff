"""Running only what failed again (rule R20)."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import FAULT_PLACES, PATIENCE, PLACES, SLOW_PLACES
from test_lost import stop_outside_a_write

from celery_statemanager import Manager, Status
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Write
from celery_statemanager.testing import FaultyStore


def fix(tracked, key):
    (tracked.HOME / f"{key}.fixed").touch()


def callbacks_run(tracked, job):
    """Return the latches whose callbacks have run, with their ids."""
    return sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}"))


@pytest.mark.places(*PLACES, usual=3)
def test_only_the_rows_that_failed_run_again(tracked, pool, key, submit):
    job = submit([tracked.count.s(f"{key}.0"), tracked.fail_until_fixed.s(key), tracked.count.s(f"{key}.2")])
    assert job.wait(PATIENCE).failed_indexes == IndexSet([1])
    assert job.generation == 1
    fix(tracked, key)
    report = job.rerun("failed")
    assert (report.rows, report.skipped) == (IndexSet([1]), IndexSet())
    assert job.generation == 2
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.generation) == (3, 2)
    assert [line.split()[0] for line in tracked.notes(key)] == ["1", "2"]
    assert len({line.split()[1] for line in tracked.notes(key)}) == 1, "only the prefix of the Celery task id changes"
    assert (tracked.notes(f"{key}.0"), tracked.notes(f"{key}.2")) == (["1"], ["1"])


@pytest.mark.places(*PLACES, usual=1)
def test_rows_that_finished_run_or_wait_are_skipped(tracked, pool, key, submit, eventually):
    members = [
        tracked.succeed.s(1),
        tracked.fail_until_fixed.s(key),
        tracked.gate.s(f"{key}.gate"),
        tracked.succeed.s(2),
    ]
    job = submit(members, max_in_flight=1)
    eventually(lambda: tracked.notes(f"{key}.gate"))
    report = job.rerun("0-3")
    assert (report.rows, report.skipped) == (IndexSet([1]), IndexSet([0, 2, 3]))
    fix(tracked, key)
    (tracked.HOME / f"{key}.gate.go").touch()
    eventually(lambda: job.summary().finished == 4)
    assert len(tracked.notes(f"{key}.gate")) == 2
    again = job.rerun("failed")
    assert (again.rows, again.skipped, job.generation) == (IndexSet(), IndexSet(), 2)


@pytest.mark.places(*PLACES, usual=1)
def test_each_generation_has_its_callbacks(tracked, pool, key, submit, eventually):
    callbacks = {f"on_{name}": tracked.callback.s() for name in ("success", "failure", "settled")}
    job = submit([tracked.fail_until_fixed.s(key), tracked.fail_until_fixed.s(key)], **callbacks)
    job.wait(PATIENCE)
    eventually(lambda: len(callbacks_run(tracked, job)) == 2)
    assert callbacks_run(tracked, job) == ["failure", "settled"]
    job.rerun("0")
    job.wait(PATIENCE)
    eventually(lambda: len(callbacks_run(tracked, job)) == 4)
    assert callbacks_run(tracked, job) == ["failure", "failure.2", "settled", "settled.2"]
    fix(tracked, key)
    job.rerun("failed")
    assert job.wait(PATIENCE).finished == 2
    eventually(lambda: len(callbacks_run(tracked, job)) == 6)
    assert callbacks_run(tracked, job) == ["failure", "failure.2", "settled", "settled.2", "settled.3", "success.3"]


@pytest.mark.places(*PLACES, usual=2)
@pytest.mark.parametrize(("size", "repeated"), [(3, False), (600_000, True)], ids=["kept value", "value not kept"])
def test_a_chain_begins_again_at_the_stage_that_failed(tracked, pool, key, submit, size, repeated):
    job = submit([tracked.emit.s(key, size) | tracked.fail_second_until_fixed.s(key)])
    assert job.wait(PATIENCE).failed == 1
    fix(tracked, key)
    assert job.rerun([0]).rows == IndexSet([0])
    assert job.wait(PATIENCE).finished == 2
    again = ["first 2"] if repeated else []
    assert tracked.notes(key) == ["first 1", f"second 1 {size}", *again, f"second 2 {size}"]


@pytest.mark.places(*PLACES, usual=1)
def test_the_chosen_rows_of_a_cancelled_job_run(tracked, pool, key, submit, eventually):
    gates = [f"{key}.{row}" for row in range(4)]
    job = submit([tracked.gate.s(each) for each in gates], max_in_flight=1)
    eventually(lambda: tracked.notes(gates[0]))
    job.cancel("user asked")
    for gate in gates:
        (tracked.HOME / f"{gate}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert job.rerun("1,3").rows == IndexSet([1, 3])
    assert job.wait(PATIENCE).finished == 3
    assert [len(tracked.notes(gate)) for gate in gates] == [2, 2, 0, 2]
    state = job.get_state("work", 2)
    assert (state.status, state.message) == (Status.CANCELLED, "user asked")
    assert job.rerun("failed").rows == IndexSet([2])
    assert job.wait(PATIENCE).finished == 4
    assert tracked.notes(gates[2]) == ["begun 1", "ended 1"]


@pytest.mark.places(("redis-redis", "threads"), ("folders-sqlite", "threads"), usual=1)
def test_messages_from_before_a_rerun_neither_run_nor_end_a_row(tracked, setting, key, start_worker, eventually):
    """All messages wait in a queue when the job is cancelled, and a worker remembers that their ids are revoked."""
    start_worker(key)
    control, worker = tracked.app.control, [f"{key}@test"]
    control.cancel_consumer(key, destination=worker, reply=True, timeout=PATIENCE, limit=1)
    callback = tracked.callback.s().set(queue=key)
    members = [tracked.count.s(f"{key}.{row}").set(queue=key) for row in range(4)]
    job = tracked.states.submit(members, on_failure=callback, on_settled=callback)
    job.cancel("user asked")
    assert job.rerun("1,3").rows == IndexSet([1, 3])
    control.add_consumer(key, destination=worker)
    assert job.wait(PATIENCE).finished == 2
    eventually(lambda: callbacks_run(tracked, job) == ["settled", "settled.2"])
    assert [len(tracked.notes(f"{key}.{row}")) for row in range(4)] == [0, 1, 0, 1]
    assert [job.get_state("work", row).status for row in (0, 2)] == [Status.CANCELLED] * 2


@pytest.mark.places(*PLACES, usual=1)
def test_plain_tasks_run_again(tracked, pool, key, submit):
    job = submit([tracked.plain.s(key), tracked.fail_plain.s()])
    job.wait(PATIENCE)
    before = job.get_state("plain", 0).version
    assert job.rerun("failed").rows == IndexSet([1])
    job.wait(PATIENCE)
    assert job.get_state("plain", 0).version == before
    assert job.summary().failed == 1


@pytest.mark.places(("folders-sqlite", "threads"), ("redis-redis", "threads"))
def test_a_wait_ends_when_another_generation_begins(tracked, pool, key, submit):
    job = submit([tracked.fail_until_fixed.s(key), tracked.gate.s(f"{key}.gate")])
    events = job.subscribe(until_settled=True)
    list(iter(lambda: events.get(0.5), None))
    with pytest.raises(TimeoutError):
        job.wait(0.1)
    job.rerun("failed")
    list(events)
    (tracked.HOME / f"{key}.gate.go").touch()
    job.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.places(*SLOW_PLACES, usual=2)
def test_a_sweep_completes_a_rerun_that_was_interrupted(tracked, pool, key, submit, monkeypatch):
    job = submit([tracked.fail_until_fixed.s(key) for _ in range(4)])
    job.wait(PATIENCE)
    fix(tracked, key)
    store, resets = type(tracked.states.store), []
    reset_row = store.reset_row

    def fail_after_two(self, ref, reset):
        if len(resets) == 2:
            raise KeyboardInterrupt
        resets.append(reset.task_index)
        return reset_row(self, ref, reset)

    monkeypatch.setattr(store, "reset_row", fail_after_two)
    with pytest.raises(KeyboardInterrupt):
        job.rerun("failed")
    monkeypatch.undo()
    assert job.generation == 2
    assert job.wait(PATIENCE).finished == 4
    assert len(tracked.notes(key)) == 8


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
@pytest.mark.parametrize(
    ("after", "runs"),
    [
        pytest.param(False, 1, id="before the reset", marks=pytest.mark.full),
        pytest.param(True, 2, id="after the reset"),
    ],
)
def test_the_last_write_of_a_task_that_was_presumed_dead_is_part_of_one_generation(
    here, load_here, key, start_configured_worker, eventually, monkeypatch, after, runs
):
    """Either it ends the row, which then does not run again, or the row has been reset, and it is refused.

    No other worker has the store, so that no sweep completes the rerun.
    """
    tracked = load_here()
    zombie = start_configured_worker(here.environment, "solo", key)
    sweeper = start_configured_worker(here.environment, "solo", f"{key}.sweeper")
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    stop_outside_a_write(zombie.process, tracked.states.store)
    assert job.wait(PATIENCE).failed == 1
    sweeper.kill()
    (tracked.HOME / f"{key}.go").touch()

    def has_written():
        return "state not written" in zombie.log.read_text() if after else job.get_state("work", 0).finished

    def resume(_):
        os.kill(zombie.process.pid, signal.SIGCONT)
        eventually(has_written)

    store = FaultyStore(tracked.states.store)
    store.at("reset_row", resume, after=after)
    monkeypatch.setattr(tracked.states, "store", store)
    job.rerun("failed")
    assert job.generation == 2
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == runs
    attempts = range(1, runs + 1)
    assert tracked.notes(key) == [f"{what} {attempt}" for attempt in attempts for what in ("begun", "ended")]


@pytest.mark.places(("folders-sqlite", "threads"))
@pytest.mark.parametrize(
    ("rows", "error"),
    [("0-9", "9"), ([7], "7"), ("x", "'x'"), ("3-1", "'3-1'"), ([True], "True"), (None, "None"), (3, "3")],
)
def test_bad_input_is_refused_before_anything_is_written(tracked, submit, rows, error):
    job = submit([tracked.succeed.s(1)])
    with pytest.raises((TypeError, ValueError), match=error):
        job.rerun(rows)
    assert job.generation == 1


def test_a_job_without_stored_messages_cannot_be_rerun(eager_tracked):
    job = eager_tracked.states.submit([eager_tracked.succeed.s(1)])
    with pytest.raises(
        ValueError, match="cannot be rerun, because its messages are not stored: it ran in eager mode, or"
    ):
        job.rerun("failed")


def test_a_job_of_a_manager_cannot_be_rerun(eager_tracked):
    Manager.create(eager_tracked.states.store, "by a manager", num_tasks=2)
    job = eager_tracked.states.job("by a manager")
    with pytest.raises(ValueError, match="not stored: it ran in eager mode, or was created by a Manager"):
        job.rerun("failed")


ROWS, ROWS_ON_EMULATOR = 10_000, 2_000
"""Numbers of rows with ``--full``. The emulator of Firestore resets only some dozens a second."""

RESET = 120.0
"""Seconds to wait for the reset of that many rows."""

RERUN = "import sys, tracked; tracked.states.job(sys.argv[1]).rerun('failed')"


@pytest.mark.timeout(400)
@pytest.mark.places(*FAULT_PLACES)
def test_a_rerun_that_is_killed_half_way_is_completed(tracked, setting, place, pool, key, submit, eventually, request):
    most = ROWS_ON_EMULATOR if place[0] == "redis-firestore" else ROWS
    count = most if request.config.getoption("--full") else 500
    job = submit([tracked.succeed.s().set(queue=key) for _ in range(count)], max_in_flight=1)
    job.pause("so that no row runs")
    failures = (Write.state("work", row, Status.FAILED) for row in range(count))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda failure: tracked.states.store.write(job.manager.ref, failure), failures))
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RERUN, job.id]
    process = subprocess.Popen(command, env={**os.environ, **setting.environment, **path})
    eventually(lambda: job.summary().failed < count * 0.7, RESET)
    process.kill()
    process.wait()
    left = job.summary().failed
    eventually(lambda: not job.summary().failed, RESET)
    states = job.list_states()
    assert left
    assert {state.version for state in states} == {2}
    assert job.generation == 2
