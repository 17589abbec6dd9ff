"""Two apps on one store: each sends only messages of its own tasks."""

import json
import logging
import subprocess
import sys
import uuid
from dataclasses import replace

import pytest
from celery import Celery, signature
from servers import running_redis

from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.attempts import mark_lost
from celery_statemanager.integration.callbacks import callback_to_json
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.leases import Received, Report, renew
from celery_statemanager.records import Begin, Latch, Write, new_event_id, new_job
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FakeClock, Proxy
from celery_statemanager.testing.kit import workers

LEASE = 30.0


class Shop:
    """An app with one task, which other apps do not have."""

    def __init__(self, name, store, broker="memory://"):
        self.app = Celery(name, broker=broker, set_as_current=False)
        self.app.conf.update(statemanager_lease=LEASE, task_default_queue=f"{name}-{uuid.uuid4()}")
        self.states = StateManager(self.app)
        self.states.store = store

        def work(): ...

        self.task = self.app.task(base=StatefulTask, shared=False, name=f"{name}.work")(work)
        self.app.finalize()

    def sweep(self):
        """Sweep, and return the report and the tasks whose messages were sent."""
        self.receive()
        return sweep(self.states), [message.headers["task"] for message in self.receive()]

    def receive(self):
        """Return the messages of the app's queue, and remove them."""
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            queue.declare()
            return [*iter(lambda: queue.get(no_ack=True), None)]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock, tmp_path):
    with open_store(f"sqlite:///{tmp_path}/states.db", clock=clock) as store:
        yield store


@pytest.fixture
def ours(store):
    return Shop("ours", store)


@pytest.fixture
def theirs(store):
    return Shop("theirs", store)


def submit(shop, job_id="a job"):
    """Submit a job of one row whose message is lost, and return its record."""
    job = shop.states.submit([shop.task.si()], job_id=job_id, on_settled=shop.task.si())
    assert len(shop.receive()) == 1
    return job._record


def begin(store, job, tag="default"):
    return store.begin(job.ref, Begin(tag=tag, task_index=0, event_id=new_event_id(), owner="dead"))


def test_a_lost_attempt_is_published_again_only_by_an_app_that_has_its_task(store, clock, ours, theirs, caplog):
    ours.app.conf.statemanager_on_lost = "requeue"
    job = submit(ours)
    begin(store, job)
    clock.advance(LEASE + 1)
    with caplog.at_level(logging.WARNING):
        assert not theirs.sweep()[0]
        assert theirs.sweep() == theirs.sweep()
    warnings = [record.getMessage() for record in caplog.records if "a job" in record.getMessage()]
    assert len(warnings) == 1
    assert "no task 'ours.work'" in warnings[0]
    assert "statemanager_store_url" in warnings[0]
    assert store.get_cell(job.ref, "default", 0).open
    swept, sent = ours.sweep()
    assert (swept.requeued, sent) == (1, ["ours.work"])


def test_a_due_callback_is_published_only_by_an_app_that_has_its_task(store, clock, ours, theirs):
    job = submit(ours)
    mark_lost(store, job.ref, "default", 0, begin(store, job).cell, new_event_id(), max_lost=3)
    clock.advance(LEASE)
    swept, sent = theirs.sweep()
    assert (swept.callbacks, sent) == (0, [])
    assert store.get_job(job.key).due
    swept, sent = ours.sweep()
    assert (swept.callbacks, sent) == (1, ["ours.work"])
    assert not store.get_job(job.key).latches["settled"].due


def test_a_lost_callback_is_found_only_by_an_app_that_has_its_task(store, clock, ours, theirs):
    job = submit(ours)
    mark_lost(store, job.ref, "default", 0, begin(store, job).cell, new_event_id(), max_lost=3)
    clock.advance(LEASE)
    assert ours.sweep()[1] == ["ours.work"]
    for _ in range(3):
        clock.advance(LEASE * 0.9)
        assert theirs.sweep()[1] == []
    assert not store.get_job(job.key).latches["settled"].due
    assert ours.sweep()[1] == []
    clock.advance(LEASE)
    ours.sweep()
    assert ours.sweep()[1] == ["ours.work"]


def test_received_rows_of_a_dead_worker_are_published_by_their_own_app(store, clock, ours, theirs):
    jobs = submit(ours), submit(theirs, "another job")
    renew(store, "dead", Report(received=[Received(job.ref, "default", 0) for job in jobs]), LEASE)
    clock.advance(LEASE + 1)
    assert theirs.sweep()[1] == ["theirs.work"]
    assert theirs.sweep()[1] == []
    assert ours.sweep()[1] == ["ours.work"]
    assert workers(store) == {}


def test_a_lost_message_is_found_only_by_an_app_that_has_its_task(store, clock, ours, theirs):
    """The queue of the message does not exist on the broker of the other app."""
    job = submit(ours)
    for _ in range(3):
        assert theirs.sweep()[1] == []
        clock.advance(LEASE * 0.9)
    assert store.get_cell(job.ref, "default", 0) is None
    assert ours.sweep()[1] == []
    clock.advance(LEASE)
    ours.sweep()
    assert ours.sweep()[1] == ["ours.work"]


@pytest.fixture
def broker():
    with running_redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


def test_received_rows_of_a_dead_worker_wait_for_the_broker(store, clock, broker):
    shop = Shop("ours", store, f"redis://127.0.0.1:{broker.port}/0")
    shop.app.conf.task_publish_retry = False
    job = submit(shop)
    renew(store, "dead", Report(received=[Received(job.ref, "default", 0)]), LEASE)
    clock.advance(LEASE + 1)
    with broker.down():
        assert sweep(shop.states).requeued == 1
    assert str(store.get_outbox(job.ref).returned.waiting) == "0"
    assert workers(store) == {}
    assert shop.sweep()[1] == ["ours.work"]
    shop.app.close()


def test_the_sweep_command_imports_the_modules_that_its_app_includes(tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    (tmp_path / "included.py").write_text("from swept import app\n@app.task\ndef work(): ...\n")
    (tmp_path / "swept.py").write_text(
        "from celery import Celery\nfrom celery_statemanager import StateManager\n"
        f"app = Celery('swept', broker='memory://', include=['included'], statemanager_store_url={url!r})\n"
        "app.conf.statemanager_lease = 0.01\nStateManager(app)\n"
    )
    with open_store(url) as store:
        latches = {
            "success": Latch(),
            "failure": Latch(),
            "settled": Latch(callback_to_json("on_settled", signature("included.work", immutable=True))),
        }
        job = store.create_job(replace(new_job("a job", 1, ("work",)), latches=latches))
        begin(store, job, "work")
        store.write(job.ref, Write(tag="work", task_index=0, status=-1, event_id="end", attempt=1, ends_attempt=True))
        assert store.get_job(job.key).due
        command = [sys.executable, "-m", "celery", "-A", "swept", "sweep-state", "--format", "json"]
        swept = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(swept.stdout)["callbacks"] == 1
        assert not store.get_job(job.key).latches["settled"].due
