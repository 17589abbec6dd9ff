"""The outbox with real processes: submitters, workers and brokers that fail while messages are published (rule R19)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAULT_PLACES, HERE, PATIENCE, PLACES

from celery_statemanager import JobNotFound

SUBMITTER = """
import os, signal, sys
import tracked
from celery_statemanager.integration.outbox import blocks, publisher
from celery_statemanager.testing import FaultyStore

key, queue, rows, dies_after, window = sys.argv[1:]
rows, dies_after, window = int(rows), int(dies_after), int(window) or None
publish, sent = publisher.publish, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(*arguments):
    if len(sent) == dies_after:
        die()
    publish(*arguments)
    sent.append(1)

publisher.publish = counted

def members():
    for row in range(rows):
        if row == -dies_after > 0:  # a negative number: in the middle of a block
            die()
        yield tracked.count.s(f"{key}.{row}").set(queue=queue)

if rows == -dies_after:  # after the last block
    tracked.states.store = store = FaultyStore(tracked.states.store)
    store.at("create_job", lambda _: die())
blocks.BLOCK_BYTES = 2_000
tracked.states.submit(members(), job_id=key, max_in_flight=window)
die()
"""


@pytest.fixture
def submit_and_die(setting, key):
    """Return a function that submits a job in a process that is killed."""

    def submit(rows, dies_after, queue, window=0):
        done = subprocess.run(
            [sys.executable, "-c", SUBMITTER, key, queue, str(rows), str(dies_after), str(window)],
            cwd=HERE,
            env={**os.environ, **setting.environment, "PYTHONPATH": f"{HERE}:{Path(HERE).parents[1]}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    return submit


def runs(tracked, key, rows):
    """Return how often each row has run."""
    return [len(tracked.notes(f"{key}.{row}")) for row in range(rows)]


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
@pytest.mark.parametrize("dies_after", [7, *(pytest.param(each, marks=pytest.mark.full) for each in (0, 1, 20, 40))])
def test_the_job_of_a_killed_submitter_runs(tracked, pool, key, submit_and_die, dies_after):
    submit_and_die(40, dies_after, pool)
    job = tracked.states.job(key)
    assert job.wait(PATIENCE).finished == 40
    assert runs(tracked, key, 40) == [1] * 40


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
@pytest.mark.parametrize("dies_after", [-20, pytest.param(-40, marks=pytest.mark.full)])
def test_a_job_whose_submitter_is_killed_before_it_is_accepted_never_existed(
    tracked, pool, key, submit_and_die, dies_after
):
    submit_and_die(40, dies_after, pool)
    with pytest.raises(JobNotFound):
        tracked.states.job(key)
    job = tracked.states.submit([tracked.count.s(f"{key}.again").set(queue=pool)], job_id=key)
    assert job.wait(PATIENCE).finished == 1
    assert runs(tracked, key, 40) == [0] * 40


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_a_window_of_a_killed_submitter_is_kept_filled(tracked, pool, key, submit_and_die):
    submit_and_die(30, 2, pool, window=4)
    assert tracked.states.job(key).wait(PATIENCE).finished == 30
    assert runs(tracked, key, 30) == [1] * 30


def test_no_more_rows_than_permitted_are_in_flight(tracked, pool, key, submit, eventually):
    gates = [f"{key}.{row}" for row in range(8)]
    job = submit([tracked.gate.s(each) for each in gates], max_in_flight=2)
    for row in range(0, 8, 2):
        assert tracked.states.store.get_outbox(job.manager.ref).claimed == row + 2
        for gate in gates[row : row + 2]:  # a broker may deliver them in another order
            (tracked.HOME / f"{gate}.go").touch()
        eventually(lambda row=row: job.summary().finished == row + 2)
    assert job.wait(PATIENCE).finished == 8


@pytest.mark.places(*PLACES, usual=2)
def test_the_later_stages_of_a_row_keep_its_place(tracked, pool, key, submit):
    rows = [tracked.succeed.s(row) | tracked.second.s() for row in range(12)]
    job = submit(rows, max_in_flight=3)
    summary = job.wait(PATIENCE)
    assert (summary.finished, summary.expected) == (24, 24)


@pytest.mark.places(*PLACES, usual=2)
def test_rows_that_fail_make_room_for_others(tracked, pool, key, submit):
    job = submit([tracked.fail.s() for _ in range(10)], max_in_flight=2)
    assert job.wait(PATIENCE).failed == 10


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
@pytest.mark.parametrize(
    "fault", ["dies_before_publishing", pytest.param("child_dies_before_publishing", marks=pytest.mark.full)]
)
def test_rows_that_a_killed_process_had_claimed_run(tracked, setting, pool, key, start_worker, fault):
    start_worker(f"{key}.{fault}", pool="prefork", TRACKED_FAULT=fault)
    rows = [tracked.count.s(f"{key}.{row}").set(queue=pool) for row in range(6)]
    rows[0] = tracked.count.s(f"{key}.0").set(queue=f"{key}.{fault}")
    job = tracked.states.submit(rows, max_in_flight=1)
    assert job.wait(PATIENCE).finished == 6
    assert runs(tracked, key, 6) == [1] * 6
