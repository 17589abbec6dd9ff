"""Callbacks: where their messages wait until they have ended, and what is published again (rules R15, R19)."""

import uuid
from datetime import datetime, timezone

import pytest
from celery import Celery, signature
from kombu import Queue

from celery_statemanager import StatefulTask, StateManager, Status, StoreUnavailable
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.outbox import changed, publisher
from celery_statemanager.integration.outbox.envelope import from_message
from celery_statemanager.integration.outbox.making import binding_in
from celery_statemanager.records import CALLBACK_ROW, Delivery, Latch, Place, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import FINISHED

LATER = datetime(2040, 1, 1, tzinfo=timezone.utc)
IN_2040 = round(LATER.timestamp() * 1_000_000)


class Redirected(StatefulTask):
    """A task class that chooses the queue itself."""

    abstract = True

    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, **{**options, "queue": "chosen"})


@pytest.fixture
def states(clock):
    app = Celery("callbacks", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    app.conf.task_default_queue = f"callbacks-{uuid.uuid4().hex}"  # all apps of a process share the broker in memory
    app.conf.task_queues = [Queue(app.conf.task_default_queue), Queue("chosen"), Queue("routed")]
    app.conf.task_routes = {"routed": {"queue": "routed"}}
    states = StateManager(app)
    states.store = FaultyStore(MemoryStore(clock))

    def work(*_): ...

    for name, base in (("work", StatefulTask), ("routed", StatefulTask), ("chosen", Redirected), ("plain", None)):
        app.task(name=name, shared=False, **({} if base is None else {"base": base}))(work)
    app.finalize()
    yield states
    app.close()


@pytest.fixture
def receive(states):
    """Receive the newest message of the default queue."""
    with states.app.connection_for_read() as connection:
        queue = states.app.amqp.queues[states.app.conf.task_default_queue](connection.default_channel)

        def receive():
            messages = [*iter(lambda: queue.get(no_ack=True), None)]
            return from_message(messages[-1], None)

        yield receive


def run(states, binding):
    """Run the row or the callback of a binding, as a worker's process does."""
    grid, place = Grid(states.store, binding.ref), (binding.tag, binding.task_index)
    attempt = grid.begin(*place, owner="w", delivery=grid.cell(*place).delivery).cell.attempt
    return publisher.write(states, binding.ref, Write.ending(*place, FINISHED, attempt=attempt))


@pytest.fixture
def settle(states):
    """Return a function that runs the row of a new job with a callback, and returns the job."""

    def settle(callback):
        job = states.submit([states.app.tasks["work"].s()], on_success=callback)
        run(states, Binding(job.manager.ref, 0, "default"))
        return Grid(states.store, job.manager.ref)

    return settle


def place(grid):
    return grid.job.latches["success"].place


@pytest.mark.parametrize(("name", "queue"), [("routed", "routed"), ("chosen", "chosen"), ("plain", None)])
def test_the_queue_of_a_published_callback_is_recorded(states, settle, name, queue):
    grid = settle(states.app.tasks[name].s())
    assert place(grid) == Place(queue or states.app.conf.task_default_queue, in_order=True)
    assert grid.job.due
    assert not grid.job.latches["success"].due


@pytest.mark.parametrize(
    ("options", "until"),
    [
        ({"countdown": 60}, 60_000_000),
        ({"eta": LATER.isoformat()}, IN_2040),
    ],
    ids=["countdown", "eta"],
)
def test_a_delayed_callback_is_known_to_be_delayed(states, settle, options, until):
    grid = settle(states.app.tasks["work"].s().set(**options))
    expected = until if "eta" in options else states.store.now() + until
    assert place(grid).delayed_until == pytest.approx(expected, abs=1_000_000)


def test_nothing_is_recorded_of_a_callback_that_may_run_without_its_state(states, settle):
    """The worker of another app may not track it: no record would show that it has begun."""
    grid = settle(signature("elsewhere.work", app=states.app))
    assert (place(grid), grid.job.due) == (None, False)


def test_the_end_of_a_callback_is_recorded_by_its_process(states, settle):
    grid = settle(states.app.tasks["work"].s())
    run(states, Binding(grid.ref, CALLBACK_ROW, "success"))
    assert (place(grid), grid.job.due) == (None, False)


def fail(_):
    raise StoreUnavailable("down")


def test_the_end_of_a_callback_is_recorded_later_if_the_store_fails(states, settle):
    grid = settle(states.app.tasks["work"].s())
    states.store.at("update_job", fail)
    assert run(states, Binding(grid.ref, CALLBACK_ROW, "success")).cell.status == FINISHED
    assert place(grid) is not None


def test_a_callback_that_ends_before_it_is_marked_as_published_is_not_due(states, settle):
    def end_it(_):
        run(states, Binding(job.manager.ref, CALLBACK_ROW, "success"))

    job = states.submit([states.app.tasks["work"].s()], on_success=states.app.tasks["work"].s())
    states.store.at("update_job", end_it)
    run(states, Binding(job.manager.ref, 0, "default"))
    grid = Grid(states.store, job.manager.ref)
    assert (place(grid), grid.job.due) == (None, False)
    assert grid.job.latches["success"].published_at is not None


def retried(grid, kept=None, retries=1):
    """Begin a callback and end its attempt because it retries; then make its message due again."""
    attempt = grid.begin("success", CALLBACK_ROW, owner="w").cell.attempt
    later = Write.returned("success", CALLBACK_ROW, "retry", Delivery(0, 0, retries), attempt=attempt)
    later.kept = kept
    grid.store.write(grid.ref, later)
    grid.store.write(grid.ref, Write.sent_back("success", CALLBACK_ROW, "again", attempt=attempt))


def publish_again(states, grid):
    grid.update(lambda job: job.with_latches(success=Latch(job.latches["success"].callback, 1)))
    assert publish_decided(states, grid.ref, ("success",)) == 1


def test_a_retried_callback_that_is_published_again_begins(states, settle, receive):
    grid = settle(states.app.tasks["work"].s(2).set(countdown=60))
    retried(grid, changed.eta_to_json("work", LATER.isoformat()), retries=2)
    publish_again(states, grid)
    message = receive()
    headers = message["publish"]["headers"]
    assert (headers["retries"], headers["eta"]) == (2, LATER.isoformat())
    assert binding_in(message).delivery(headers) == Delivery(1, 0, 2) == grid.cell("success", CALLBACK_ROW).delivery
    assert place(grid).delayed_until == IN_2040


def test_a_callback_that_a_retry_changed_is_published_as_it_was_kept(states, settle, receive):
    grid = settle(states.app.tasks["work"].s())
    message = receive()
    retried(grid, changed.kept({**message, "body": '[[9], {}, {"chain": null}]'}))
    publish_again(states, grid)
    again = receive()
    assert again["body"] == '[[9], {}, {"chain": null}]'
    assert binding_in(again).publication == 1


def test_a_callback_whose_changed_message_is_not_kept_ends_rejected(states, settle):
    grid = settle(states.app.tasks["work"].s())
    retried(grid, changed.TOO_LARGE)
    publish_again(states, grid)
    cell = grid.cell("success", CALLBACK_ROW)
    assert cell.status == Status.REJECTED
    assert "too large to be kept" in cell.message
    assert (place(grid), grid.job.due) == (None, False)


def test_an_eager_callback_is_not_due(states):
    states.app.conf.task_always_eager = True
    job = states.submit([states.app.tasks["work"].s()], on_success=states.app.tasks["work"].s())
    assert states.store.get_cell(job.manager.ref, "success", CALLBACK_ROW).status == FINISHED
    assert not states.store.get_job(job.manager.ref.key).due
