"""Publishing claimed messages while the broker or the store fails."""

import logging

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_statemanager import StateManager, Status, StoreUnavailable
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.integration.outbox.publisher import FEWEST, MOST, publish_due, publish_made_due, publisher_id
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.records import Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import FINISHED, PATIENCE

GONE = OperationalError("gone")


@pytest.fixture
def states(clock):
    app = Celery("publisher", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = FaultyStore(MemoryStore(clock))
    yield states
    app.close()


@pytest.fixture
def task(states):
    @states.app.task(name="task", shared=False)
    def task(): ...

    return task


@pytest.fixture
def broker(monkeypatch):
    """The rows that were published, and the errors that the broker raises instead, by row."""

    class Broker:
        def __init__(self):
            self.rows = []
            self.errors = {}

        def publish(self, app, message, producer):
            row = int(message["publish"]["headers"]["id"].split(".")[1])
            if row in self.errors:
                raise self.errors[row]
            self.rows.append(row)

    broker = Broker()
    monkeypatch.setattr(publisher, "publish", broker.publish)
    return broker


def submitted(states, task, rows, max_in_flight=None, job_id=None):
    job = states.submit([task.s() for _ in range(rows)], max_in_flight=max_in_flight, job_id=job_id)
    return Grid(states.store, job.manager.ref)


def end(states, grid, row):
    """End a row as a worker's process does."""
    grid.begin("default", row)
    publish_made_due(states, grid.ref, grid.end("default", row, publisher=publisher_id()))


def claims(states, grid):
    return {name: str(claim.rows) for name, claim in states.store.get_outbox(grid.ref).claims.items()}


def test_what_an_error_left_is_published_by_the_next_publisher(states, task, broker):
    broker.errors = {2: GONE}
    grid = submitted(states, task, 5)
    assert broker.rows == [0, 1]
    (left,) = claims(states, grid)
    assert left.startswith("unpublished/")
    for row in (0, 1):
        grid.begin("default", row)
    broker.errors.clear()
    assert publish_due(states, grid.ref, dead=[left]) == 5
    assert broker.rows == [0, 1, 2, 3, 4], "a row that has begun is not published again"
    assert claims(states, grid) == {}


def test_the_ends_of_rows_publish_the_next_ones(states, task, broker):
    grid = submitted(states, task, 5, max_in_flight=2)
    assert broker.rows == [0, 1]
    end(states, grid, 1)
    end(states, grid, 0)
    assert broker.rows == [0, 1, 2, 3]


def test_rows_that_one_thread_could_not_publish_twice_are_all_published_by_a_sweep(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    broker.errors = dict.fromkeys(range(2, 6), GONE)
    end(states, grid, 0)
    end(states, grid, 1)
    assert sorted(claims(states, grid).values()) == ["2", "3"]
    broker.errors.clear()
    sweep(states)
    assert broker.rows == [0, 1, 2, 3]
    for row in range(2, 6):
        end(states, grid, row)
    assert broker.rows == [0, 1, 2, 3, 4, 5]
    assert states.job(grid.ref.key.job_id).summary().finished == 6


def test_rows_claimed_by_a_write_whose_response_was_lost_are_published_by_its_repetition(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    for row in (0, 1):
        grid.begin("default", row)
    states.store.lose_response("write", applied=True)
    ending = Write.ending("default", 0, FINISHED, attempt=1)
    with pytest.raises(StoreUnavailable):
        publisher.write(states, grid.ref, ending)
    publisher.write(states, grid.ref, Write.ending("default", 1, FINISHED, attempt=1))
    assert broker.rows == [0, 1, 3]
    publisher.write(states, grid.ref, ending)
    assert broker.rows == [0, 1, 3, 2]


def test_rows_that_neither_the_broker_nor_the_store_takes_are_left_when_the_store_is_back(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    broker.errors = {2: GONE}
    states.store.lose_response("claim", applied=False)
    end(states, grid, 0)
    end(states, grid, 1)
    assert broker.rows == [0, 1, 3]
    states.backlog.flush(PATIENCE)
    broker.errors.clear()
    sweep(states)
    assert {*broker.rows} == {0, 1, 2, 3}


def test_a_message_that_the_broker_refuses_for_good_ends_its_row_and_makes_room(states, task, broker):
    grid = submitted(states, task, 4, max_in_flight=1)
    broker.errors = {1: ValueError("a message of 300 KiB is too large")}
    end(states, grid, 0)
    state = grid.state("default", 1)
    assert (state.status, state.message) == (
        Status.REJECTED,
        "not published: ValueError: a message of 300 KiB is too large",
    )
    sweep(states)
    end(states, grid, 2)
    assert broker.rows == [0, 2, 3]


def test_all_messages_of_a_job_may_be_refused(states, task, broker):
    broker.errors = dict.fromkeys(range(250), ValueError("no"))
    grid = submitted(states, task, 250)
    assert states.job(grid.ref.key.job_id).summary().failed == 250
    assert "settled" in grid.decided
    assert not sweep(states).published


def test_a_task_class_that_sends_nothing_ends_its_rows(states, broker):
    class Silent(states.app.Task):
        def apply_async(self, *args, **options):
            return self.AsyncResult("another")

    @states.app.task(name="silent", base=Silent, shared=False)
    def silent(): ...

    grid = submitted(states, silent, 2)
    assert broker.rows == []
    state = grid.state("default", 0)
    text = "not published: apply_async of Silent sent no message for task silent"
    assert (state.status, state.message) == (Status.REJECTED, text)
    assert "settled" in grid.decided


def test_the_other_jobs_are_published_if_the_messages_of_one_are_missing(states, task, broker, caplog):
    broker.errors = dict.fromkeys(range(2), GONE)
    broken, whole = submitted(states, task, 2, job_id="broken"), submitted(states, task, 2, job_id="whole")
    broker.errors.clear()
    states.store.inner._blocks.pop(broken.ref.incarnation)
    states.blocks.__init__()
    with caplog.at_level(logging.WARNING, "celery_statemanager"):
        assert sweep(states).published == 2
    assert "the message of row 0 of job 'broken' is not in the store" in caplog.text
    assert claims(states, whole) == {}
    broken.cancel()
    assert "settled" in broken.decided


def test_a_deleted_job_is_not_published(states, task, broker, caplog):
    grid = submitted(states, task, 3, max_in_flight=1)
    grid.delete()
    with caplog.at_level(logging.INFO, "celery_statemanager"):
        assert publish_due(states, grid.ref) == 0
    assert [each.levelname for each in caplog.records if "not published" in each.message] == ["INFO"]


def test_a_publisher_without_time_publishes_only_what_dead_ones_had_claimed(states, task, broker):
    broker.errors = {0: GONE}
    grid = submitted(states, task, 300)
    broker.errors.clear()
    dead = [*claims(states, grid)]
    assert publish_due(states, grid.ref, dead=dead, seconds=-1.0) == FEWEST
    assert broker.rows == [*range(FEWEST)]
    assert claims(states, grid) == {}
    assert publish_due(states, grid.ref) == 300 - FEWEST


@pytest.mark.parametrize(
    ("limit", "seconds", "expected"),
    [(100, 0.25, 100), (100, 0.1, 250), (100, 0.0, MOST), (1_000, 10.0, FEWEST), (400, 0.5, 200)],
)
def test_the_number_of_rows_that_are_claimed_at_once_follows_the_speed(limit, seconds, expected):
    assert publisher._next_limit(limit, seconds) == expected
