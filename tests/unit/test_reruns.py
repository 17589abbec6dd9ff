"""Reruns beside cancels, pauses, garbage collection and other reruns, on a store that fails on demand (rule R20)."""

import os
import threading
from queue import Empty

import pytest
from celery import Celery

from celery_statemanager import StatefulTask, StateManager, Status
from celery_statemanager.garbage import collect_garbage
from celery_statemanager.integration import results
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.outbox.publisher import release_claims, write
from celery_statemanager.integration.revokes import revoke
from celery_statemanager.records import Begin, Delivery, Verdict, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.kit import FAILED, FINISHED, PATIENCE, FakeClock


class World:
    def __init__(self, store=None, **conf):
        self.app = Celery(f"rerun{os.urandom(3).hex()}", broker="memory://", set_as_current=False)
        self.app.conf.update(statemanager_store_url="memory://", task_default_queue=self.app.main, **conf)
        self.states = StateManager(self.app)
        self.store = self.states.store = FaultyStore(store or self.states.store)
        self.tracker = tracker_of(self.app)

        def body(self, *args): ...

        for tag in ("work", "second"):
            self.app.task(body, base=StatefulTask, bind=True, tag=tag, name=tag, shared=False)
        self.app.task(body, bind=True, name="cb", shared=False)
        self.work, self.second, self.cb = (self.app.tasks[name] for name in ("work", "second", "cb"))

    def submit(self, members, **options):
        self.job = self.states.submit(members, **options)
        self.ref = self.job.manager.ref
        return self.job

    def begin(self, row, tag="work", publication=0, retries=0):
        delivery = Delivery(publication, 0, retries)
        return self.store.begin(self.ref, Begin(tag=tag, task_index=row, owner="w", delivery=delivery))

    def end(self, row, status, tag="work", **fields):
        attempt = self.store.get_cell(self.ref, tag, row).attempt
        request = Write.ending(tag, row, int(status), attempt=attempt)
        for name, value in fields.items():
            setattr(request, name, value)
        return write(self.tracker, self.ref, request)

    def fail(self, *rows):
        for row in rows:
            self.begin(row)
            self.end(row, FAILED)

    def sent(self):
        """Return the ids of the messages in the queue, without the incarnation, and remove them."""
        found = []
        with self.app.connection_for_read() as connection:
            while True:
                try:
                    found.append(connection.default_channel._get(self.app.main)["headers"]["id"].partition(".")[2])
                except Empty:
                    return found

    def statuses(self, tag="work"):
        return [int(self.job.get_state(tag, row).status) for row in range(self.job.num_tasks)]


@pytest.fixture
def world():
    world = World()
    yield world
    world.app.close()


def test_a_second_rerun_does_not_replace_one_whose_rows_are_being_reset(world):
    world.submit([world.work.s() for _ in range(6)])
    world.fail(*range(6))
    started, go_on = threading.Event(), threading.Event()

    def stop(_):
        started.set()
        assert go_on.wait(PATIENCE)

    def rerun():
        world.store.at("reset_row", lambda _: None)
        world.store.at("reset_row", stop)
        world.states.job(world.job.id).rerun("0-4")

    first = threading.Thread(target=rerun)

    def start_first(_):
        first.start()
        assert started.wait(PATIENCE)

    world.store.at("column_summaries", start_first)  # before the second reads whether rows are being reset
    world.job.rerun("5")
    go_on.set()
    first.join(PATIENCE)
    assert not first.is_alive()
    assert world.statuses() == [0] * 6


def test_a_rerun_of_a_cancelled_job_does_not_cancel_the_rows_of_another_rerun(world):
    world.submit([world.work.s() for _ in range(4)])
    world.job.cancel("user asked")
    world.store.at("claim", lambda _: world.states.job(world.job.id).rerun("0-3"))
    world.job.rerun("1")
    assert world.statuses() == [0] * 4


def test_the_messages_of_rows_that_stay_cancelled_do_not_begin(world):
    world.submit([world.work.s() for _ in range(2)])
    world.job.cancel("user asked")
    world.job.rerun("1")
    assert world.begin(0).verdict is not Verdict.BEGUN


def test_the_window_holds_when_rows_in_the_outbox_stay_cancelled(world):
    world.submit([world.work.s() for _ in range(60)], max_in_flight=2)
    world.fail(*range(60))
    world.job.rerun("failed")
    world.job.cancel("changed my mind")
    world.sent()
    world.job.rerun("0-19")
    assert len(world.sent()) == 2


@pytest.mark.parametrize("how", ["a retry is refused", "its worker is dead"])
def test_a_job_settles_whose_row_was_cancelled_in_the_middle_of_its_chain(world, how):
    world.submit([world.work.si() | world.second.si() for _ in range(2)])
    world.fail(0)
    world.begin(1)
    if how == "a retry is refused":
        world.store.write(world.ref, Write.returned("work", 1, "retry", Delivery(0, 0, 1), attempt=1))
        world.job.cancel("x")
        assert world.begin(1, retries=1).verdict is Verdict.CANCELLED
    else:
        world.job.cancel("x")
        world.store.write(world.ref, Write.sent_back("work", 1, "sent again", attempt=1, is_open=True))
    world.job.rerun("0")
    world.begin(0, publication=1)
    world.end(0, FINISHED)
    world.begin(0, "second", publication=1)
    world.end(0, FINISHED, "second")
    assert world.store.get_job(world.ref.key).settled, world.job.list_states()


def test_a_cancel_does_not_revoke_the_messages_of_a_later_generation(world, monkeypatch):
    world.submit([world.work.s() for _ in range(3)])
    revoked = []
    world.app.control.revoke = lambda ids, **_: revoked.extend(ids)

    def later(tracker, ref):
        world.states.job(world.job.id).rerun("failed")
        revoke(tracker, ref)

    monkeypatch.setattr("celery_statemanager.integration.submission.job.revoke", later)
    world.job.cancel("x")
    assert not [each for each in revoked if "-2." in each]


def test_the_publisher_of_an_earlier_callback_does_not_mark_that_of_the_next_generation(world):
    world.submit([world.work.s()], on_failure=world.cb.s())
    world.begin(0)
    ending = Write.ending("work", 0, FAILED, attempt=1)
    first = world.store.write(world.ref, ending).decided
    second = []

    def meanwhile(_):
        world.states.job(world.job.id).rerun("failed")
        world.begin(0, publication=1)
        second.extend(world.store.write(world.ref, Write.ending("work", 0, FAILED, attempt=2)).decided)

    world.store.at("get_job", lambda _: None)
    world.store.at("get_job", meanwhile)  # between the publication and its mark
    publish_decided(world.tracker, world.ref, first)
    publish_decided(world.tracker, world.ref, tuple(second))
    assert "failure.2" in world.sent()


@pytest.mark.parametrize(("tags", "failed"), [(("work", "x"), "x"), (("work", "x", "y"), "y")])
def test_a_rerun_of_a_row_that_failed_in_a_tag_without_a_message(world, tags, failed):
    world.submit([world.work.s()], tags=tags)
    for tag in tags:
        world.store.write(world.ref, Write.state(tag, 0, FAILED if tag == failed else FINISHED))
    world.sent()
    report = world.job.rerun("failed")
    assert not world.store.get_job(world.ref.key).generation.rows_to_reset
    assert not report.rows or world.sent()


def test_a_stored_result_of_generation_1_does_not_finish_generation_2(tmp_path):
    world = World(result_backend=f"file://{tmp_path}")
    world.submit([world.work.s()])
    world.begin(0)
    world.store.write(world.ref, Write.state("work", 0, -50, "out of quota"))
    world.end(0, FINISHED)  # its body returned: the application's own status stays
    binding = Binding(world.ref, 0, "work")
    world.app.backend.store_result(binding.celery_task_id, None, "SUCCESS")
    world.job.rerun("failed")
    results.finish_if_succeeded(world.tracker, binding, world.work)  # the stale message is delivered again
    assert world.statuses() == [0]


@pytest.mark.parametrize("state", ["paused", "being reset"])
def test_a_job_with_messages_in_its_outbox_is_not_collected(state):
    clock = FakeClock()
    world = World(MemoryStore(clock=clock))
    world.submit([world.work.s() for _ in range(3)])
    world.fail(0)
    if state == "paused":
        world.job.pause("until next month")
        world.job.rerun("failed")
    else:

        def kill(_):
            raise KeyboardInterrupt

        world.store.at("reset_row", kill)
        with pytest.raises(KeyboardInterrupt):
            world.job.rerun("failed")
    release_claims()
    for _ in range(2):
        clock.advance(50 * 86_400)
        collect_garbage(world.store, tombstone_age="30d", delete_age="60d")
    assert world.store.get_job(world.ref.key)


def test_a_message_of_protocol_1_that_may_not_be_decoded_ends_its_row():
    world = World(task_protocol=1, task_serializer="pickle", accept_content=["json"])
    world.submit([world.work.s(1)])
    world.store.write(world.ref, Write.state("work", 0, FAILED))
    with world.app.connection_for_read() as connection:
        connection.default_channel._get(world.app.main)
    world.job.rerun("failed")
    returned = world.store.get_outbox(world.ref).returned
    assert world.statuses() == [Status.REJECTED] or not returned, "tried again by every sweep, for ever"
