"""``submit`` while the store or the broker fails, and when it is interrupted (rules R12, R19)."""

import logging

import pytest
from celery import Celery
from celery.signals import before_task_publish
from kombu.exceptions import OperationalError

from celery_statemanager import JobExists, JobNotFound, StatefulTask, StateManager, Status, StoreUnavailable
from celery_statemanager.integration.outbox import blocks, publisher
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FakeClock, FaultyStore


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def states(clock):
    app = Celery("submitter", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = FaultyStore(open_store("memory://", clock=clock))
    yield states
    app.close()


@pytest.fixture
def task(states):
    @states.app.task(shared=False, base=StatefulTask)
    def task(): ...

    return task


@pytest.fixture
def sent(monkeypatch):
    """The rows whose messages were published. ``sent.broken`` holds the errors that the broker raises instead, by row."""

    class Sent(list):
        def __init__(self):
            super().__init__()
            self.broken = {}

    sent, publish = Sent(), publisher.publish

    def record(app, message, producer):
        row = int(message["publish"]["headers"]["id"].split(".")[1])
        if row in sent.broken:
            raise sent.broken[row]
        publish(app, message, producer)
        sent.append(row)

    monkeypatch.setattr(publisher, "publish", record)
    return sent


def outbox(job):
    return job._tracker.store.get_outbox(job.manager.ref)


def test_a_job_is_accepted_while_the_broker_is_away(states, task, sent, caplog):
    sent.broken = dict.fromkeys(range(5), OperationalError("connection refused"))
    with caplog.at_level(logging.WARNING, "celery_statemanager"):
        job = states.submit([task.s() for _ in range(5)])
    (warning,) = [each for each in caplog.records if each.name.startswith("celery_statemanager")]
    assert "cannot publish messages of job" in warning.getMessage()
    assert "connection refused" in warning.getMessage()
    assert sweep(states).published == 0
    sent.broken.clear()
    assert sweep(states).published == 5
    assert sent == [0, 1, 2, 3, 4]
    assert (outbox(job).claimed, outbox(job).claims) == (5, {})
    assert not sweep(states).published


@pytest.mark.parametrize("error", [OperationalError("gone"), ConnectionResetError("gone")], ids=repr)
def test_a_broker_that_fails_during_publishing_loses_no_message(states, task, sent, error):
    sent.broken = {2: error}
    job = states.submit([task.s() for _ in range(5)])
    assert sent == [0, 1]
    sent.broken.clear()
    sweep(states)
    assert sorted({*sent}) == [0, 1, 2, 3, 4]
    assert outbox(job).claims == {}


def test_a_message_that_no_broker_takes_ends_its_row_only(states, task, sent):
    sent.broken = {1: ValueError("a message of 300 KiB is too large")}
    job = states.submit([task.s() for _ in range(3)])
    assert sent == [0, 2]
    state = job.get_state("default", 1)
    assert (state.status, state.message) == (
        Status.REJECTED,
        "not published: ValueError: a message of 300 KiB is too large",
    )


def test_a_job_is_accepted_while_claims_cannot_be_stored(states, task, sent, caplog):
    states.store.lose_response("claim", applied=False)
    job = states.submit([task.s() for _ in range(3)])
    assert sent == []
    assert "cannot publish messages of job" in caplog.text
    assert sweep(states).published == 3
    assert sent == [0, 1, 2]
    assert job.get_state("default", 0).status == 0


def test_a_claim_whose_response_was_lost_is_published_when_its_lease_ends(states, task, sent, clock):
    states.store.lose_response("claim", applied=True)
    states.submit([task.s() for _ in range(3)])
    assert sent == []
    clock.advance(31)
    sweep(states)
    assert sent == [0, 1, 2]


@pytest.mark.parametrize("size", [1, blocks.BLOCK_BYTES], ids=["each member", "all members"])
@pytest.mark.parametrize("method", ["add_block", "create_job"])
def test_nothing_remains_of_a_job_that_the_store_did_not_accept(states, task, sent, method, size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    states.store.lose_response(method, applied=False, times=10)
    with pytest.raises(StoreUnavailable):
        states.submit([task.s()], job_id="etl")
    assert sent == []
    states.store.lose_response(method, applied=False, times=0)
    with pytest.raises(JobNotFound):
        states.job("etl")


def test_a_job_whose_creation_was_not_confirmed_is_accepted(states, task, sent):
    states.store.lose_response("create_job", applied=True)
    job = states.submit([task.s(), task.s()], job_id="etl")
    assert sent == [0, 1]
    assert states.job("etl").manager.ref == job.manager.ref


def test_an_existing_job_is_reported_before_any_message_is_made(states, task):
    states.submit([task.s()], job_id="etl")
    made = []
    before_task_publish.connect(lambda **_: made.append(1), weak=False, dispatch_uid="test")
    try:
        with pytest.raises(JobExists):
            states.submit([task.s()], job_id="etl")
    finally:
        before_task_publish.disconnect(dispatch_uid="test")
    assert made == []


def test_an_interrupted_submit_leaves_nothing(states, task, sent):
    def interrupt(headers, **_):
        if headers["id"].endswith(".3.0"):
            raise KeyboardInterrupt

    before_task_publish.connect(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            states.submit((task.s() for _ in range(5)), job_id="interrupted")
    finally:
        before_task_publish.disconnect(interrupt)
    with pytest.raises(JobNotFound):
        states.job("interrupted")
    states.submit([task.s() for _ in range(5)], job_id="interrupted")
    assert sent == [0, 1, 2, 3, 4]


def test_an_interrupted_publication_is_continued(states, task, sent, clock):
    sent.broken = {3: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        states.submit([task.s() for _ in range(5)], job_id="interrupted")
    assert sent == [0, 1, 2]
    sent.broken.clear()
    assert not sweep(states).published, "its submitter may be alive"
    clock.advance(31)
    sweep(states)
    assert {*sent} == {0, 1, 2, 3, 4}


def test_a_sweep_leaves_the_messages_of_another_app(states, task, sent, clock, caplog):
    sent.broken = dict.fromkeys(range(2), OperationalError("gone"))
    job = states.submit([task.s(), task.s()])
    sent.broken.clear()
    other = Celery("other", broker="memory://", set_as_current=False)
    others = StateManager(other)
    others.store = states.store
    assert not sweep(others).published
    assert "has no task" in caplog.text
    assert sent == []
    assert sweep(states).published == 2
    assert outbox(job).claims == {}


def test_relative_times_count_from_each_publication(states, task, sent, clock):
    eta = []
    before_task_publish.connect(lambda headers, **_: eta.append(headers["eta"]), weak=False, dispatch_uid="test")
    sent.broken = {0: OperationalError("gone")}
    try:
        states.submit([task.s().set(countdown=60, expires=90, queue="times")])
    finally:
        before_task_publish.disconnect(dispatch_uid="test")
    sent.broken.clear()
    sweep(states)
    with states.app.connection_for_read() as connection, connection.SimpleQueue("times") as queue:
        headers = queue.get(timeout=1).headers
    assert eta[0] < headers["eta"] < headers["expires"]


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "5"])
def test_a_wrong_window_is_refused(states, task, wrong):
    with pytest.raises((TypeError, ValueError), match="max_in_flight"):
        states.submit([task.s()], job_id="etl", max_in_flight=wrong)
    with pytest.raises(JobNotFound):
        states.job("etl")
    job = states.submit([task.s()])
    with pytest.raises((TypeError, ValueError), match="max_in_flight"):
        job.set_max_in_flight(wrong)


def test_a_window_is_filled_and_can_be_changed(states, task, sent):
    job = states.submit((task.s() for _ in range(10)), max_in_flight=3)
    assert sent == [0, 1, 2]
    assert job.max_in_flight == 3
    job.set_max_in_flight(5)
    assert sent == [0, 1, 2, 3, 4]
    job.set_max_in_flight(1)
    assert job.max_in_flight == 1
    assert not sweep(states).published
    job.set_max_in_flight(None)
    assert sent == list(range(10))
    assert job.max_in_flight is None
