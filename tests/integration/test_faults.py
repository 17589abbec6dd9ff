"""Brokers that lose all messages or are away, stores that are away, and sweeps at the same time (rules R18, R19)."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import FAULT_PLACES, HERE, PATIENCE

from celery_statemanager.integration.worker.queues import BrokerQueues
from celery_statemanager.leases import Report
from celery_statemanager.testing.kit import workers

pytestmark = [pytest.mark.slow, pytest.mark.places(*FAULT_PLACES)]

AWAY = 20.0
"""Seconds for which the broker is away, with ``--full``."""


def message_count(tracked, queue):
    with closing(BrokerQueues(tracked.states)) as queues:
        return queues.message_count(queue)


def release(tracked, gates):
    for gate in gates:
        (tracked.HOME / f"{gate}.go").touch()


def received(tracked):
    """Return the jobs of the messages that live workers list as received."""
    reports = map(Report.from_record, workers(tracked.states.store).values())
    return {each.ref for report in reports for each in report.received}


@pytest.fixture(params=["flush", "restart"])
def lose_messages(here, request):
    """Return the function with which the broker loses its messages."""
    lose = getattr(here, request.param)
    if lose is None:
        pytest.skip("a folder has no server to restart")
    return lose


def callback_has_ended(tracked, job):
    return tracked.notes(f"callback.{job.id}") and not tracked.states.store.get_job(job.manager.ref.key).due


@pytest.mark.full
def test_rows_run_once_although_the_broker_loses_their_messages(
    here, load_here, place, key, start_configured_worker, eventually, lose_messages
):
    tracked = load_here()
    start_configured_worker(here.through_proxies, place[1], key)
    gates = [f"{key}.{row}" for row in range(8)]
    job = tracked.states.submit(tracked.gate.s(each).set(queue=key) for each in gates)
    eventually(lambda: sum(len(tracked.notes(gate)) for gate in gates) == 2)
    lose_messages(key)
    release(tracked, gates)
    assert job.wait(PATIENCE).finished == 8
    assert [tracked.notes(gate) for gate in gates] == [["begun 1", "ended 1"]] * 8


@pytest.mark.full
def test_a_retry_and_a_callback_run_once_that_wait_while_the_broker_loses_its_messages(
    here, load_here, place, key, start_configured_worker, eventually, lose_messages
):
    """A worker has received both and waits for their time. If the broker restarts, it drops them, and may end itself."""
    tracked = load_here()
    start_configured_worker(here.through_proxies, place[1], key)
    retried = tracked.states.submit([tracked.retry_in.s(key, key, 5).set(queue=key)])
    callback = tracked.callback.s().set(queue=key, countdown=5)
    settled = tracked.states.submit([tracked.succeed.s().set(queue=key)], on_settled=callback)
    eventually(lambda: {retried.manager.ref, settled.manager.ref} <= received(tracked))
    lose_messages(key)
    start_configured_worker(here.through_proxies, place[1], f"{key},another")
    assert retried.wait(PATIENCE).finished == 1
    eventually(lambda: callback_has_ended(tracked, settled))
    assert tracked.notes(key) == ["begun 1", "begun 2"]
    assert len(tracked.notes(f"callback.{settled.id}")) == 1


def test_a_job_is_accepted_while_its_broker_is_away(
    here, load_here, place, key, start_configured_worker, caplog, request
):
    tracked = load_here(here.through_proxies)
    began = time.monotonic()
    with here.broker_away():
        job = tracked.states.submit(tracked.count.s(f"{key}.{row}").set(queue=key) for row in range(20))
        assert job.num_tasks == 20
        assert [each.levelname for each in caplog.records if "cannot publish messages of job" in each.message] == [
            "WARNING"
        ]
        if request.config.getoption("--full"):
            threading.Event().wait(AWAY - (time.monotonic() - began))
    start_configured_worker(here.through_proxies, place[1], key)
    assert job.wait(PATIENCE).finished == 20
    assert [len(tracked.notes(f"{key}.{row}")) for row in range(20)] == [1] * 20


SWEEPER = """
import sys
import tracked
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.testing import FaultyStore

key, number = sys.argv[1:]

def meet(_):
    tracked.note(f"{key}.sweeps", number)
    tracked.wait_for(f"{key}.go", 60)

tracked.states.store = store = FaultyStore(tracked.states.store)
store.at("claim", meet)
sweep(tracked.states)
"""


@pytest.mark.parametrize(("window", "published"), [(20, 20), pytest.param(None, 250, marks=pytest.mark.full)])
def test_two_sweeps_at_the_same_time_publish_each_message_once(
    here, load_here, place, key, start_configured_worker, eventually, window, published
):
    """Both have read that the messages are due before one of them claims any."""
    tracked, cut_off = load_here(), load_here(here.through_proxies)
    with here.broker_away():
        members = (cut_off.count.s(f"{key}.{row}").set(queue=key) for row in range(250))
        job = cut_off.states.submit(members, max_in_flight=window)
    environment = {**os.environ, **here.environment, "PYTHONPATH": f"{HERE}:{Path(HERE).parents[1]}"}
    commands = [[sys.executable, "-c", SWEEPER, key, str(number)] for number in range(2)]
    sweeps = [subprocess.Popen(each, cwd=HERE, env=environment) for each in commands]
    eventually(lambda: len(tracked.notes(f"{key}.sweeps")) == 2)
    release(tracked, [key])
    assert [each.wait(PATIENCE) for each in sweeps] == [0, 0]
    assert 0 < message_count(tracked, key) <= published  # a slow sweep leaves some to the next one
    start_configured_worker(here.environment, place[1], key)
    assert job.wait(PATIENCE).finished == 250
    assert [len(tracked.notes(f"{key}.{row}")) for row in range(250)] == [1] * 250


def test_rows_that_end_while_the_store_is_away_are_followed_by_others(
    here, load_here, place, key, start_configured_worker, eventually
):
    tracked = load_here()
    worker = start_configured_worker(here.through_proxies, place[1], key)
    gates = [f"{key}.{row}" for row in range(6)]
    members = [tracked.gate.s(each).set(queue=key) for each in gates]
    job = tracked.states.submit(members, max_in_flight=2, on_success=tracked.callback.s().set(queue=key))
    eventually(lambda: sum(len(tracked.notes(gate)) for gate in gates) == 2)
    with here.store_away():
        release(tracked, gates)
        eventually(lambda: sum(len(tracked.notes(gate)) for gate in gates) == 4)
        eventually(lambda: "cannot write a state, will retry" in worker.log.read_text())
    assert job.wait(PATIENCE).finished == 6
    eventually(lambda: callback_has_ended(tracked, job))
    assert [[note.split()[0] for note in tracked.notes(gate)] for gate in gates] == [["begun", "ended"]] * 6
    assert len(tracked.notes(f"callback.{job.id}")) == 1
