"""Single sweeps over prepared stores: what they change, and what they leave unchanged."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from sweep_actions import RecordedActions

from celery_statemanager import Status, attempts, completion, leases
from celery_statemanager.leases import Received, Report
from celery_statemanager.records import (
    CALLBACK_ROW,
    Begin,
    Cancellation,
    Cell,
    ClaimRequest,
    Delivery,
    Flow,
    Latch,
    Place,
    Policy,
    Verdict,
    Write,
    new_event_id,
    new_job,
)
from celery_statemanager.stores import open_store
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import FakeClock, FaultyStore
from celery_statemanager.testing.kit import FAILED, Grid, workers

LEASE = 30.0


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock, tmp_path):
    return open_store(f"sqlite:///{tmp_path}/states.db", clock=clock)


@pytest.fixture
def actions():
    return RecordedActions()


@pytest.fixture
def sweep(store, actions):
    return lambda: Sweep(store, actions, lease=LEASE, max_lost=3).run()


@pytest.fixture
def job(store):
    callback = Latch("{}")
    latches = {"success": callback, "failure": callback, "settled": callback}
    job = replace(new_job("swept", 3, ("a", "b")), latches=latches, flow=Flow())
    store.add_block(job.ref, 0, b"", 60)
    job = store.create_job(job)
    for limit in (3, 0):
        store.claim(job.ref, ClaimRequest(publisher="submitter", limit=limit))
    return job


def returned(store, job):
    """Return the rows that are due again: those that have begun, and the others."""
    rows = store.get_outbox(job.ref).returned
    return str(rows.begun), str(rows.waiting)


def publish(store, job):
    """Claim what is due, as the sweep's actions do."""
    for limit in (10, 0):
        store.claim(job.ref, ClaimRequest(publisher="sweeper", limit=limit))


def begin(store, job, row=0, owner="w1"):
    """Begin the newest publication of a row."""
    cell = store.get_cell(job.ref, "a", row)
    delivery = cell.delivery if cell else Delivery()
    request = Begin(tag="a", task_index=row, event_id=new_event_id(), owner=owner, delivery=delivery)
    return attempts.begin(store, job.ref, request, max_lost=3)


def end(store, job, row):
    last = Write(
        tag="a", task_index=row, status=int(Status.FINISHED), event_id=new_event_id(), attempt=1, ends_attempt=True
    )
    store.write(job.ref, last)


def cell_name_of(job, row=0):
    return leases.cell_name(job.ref, "a", row)


def test_an_attempt_listed_by_a_live_worker_stays_open(store, job, clock, sweep):
    begin(store, job)
    for _ in range(10):
        clock.advance(LEASE / 3)
        leases.renew(store, "w1", Report([cell_name_of(job)]), LEASE)
        assert not sweep()
    assert store.get_cell(job.ref, "a", 0).open


@pytest.mark.parametrize("kind", ["previous", "pending"])
def test_an_attempt_listed_as_previous_or_pending_stays_open(store, job, clock, sweep, kind):
    begin(store, job)
    clock.advance(LEASE)
    leases.renew(store, "w1", Report(**{kind: [cell_name_of(job)]}), LEASE)
    assert not sweep()


def test_an_attempt_that_its_live_worker_no_longer_lists_is_lost(store, job, clock, sweep, actions):
    begin(store, job)
    clock.advance(LEASE / 2)
    leases.renew(store, "w1", Report(), LEASE)
    assert sweep().marked == 1
    cell = store.get_cell(job.ref, "a", 0)
    assert (cell.status, cell.open, cell.losses) == (Status.LOST, False, 1)
    assert store.get_cell(job.ref, "b", 0).message == f"not run: stage 'a' failed: {cell.message}"
    assert actions.published == [("swept", "failure")]


@pytest.mark.parametrize("body", ["[]", "no json", '{"running":[],"previous":[],"pending":[],"received":[[1]]}'])
def test_an_unreadable_worker_record_protects_attempts_while_its_lease_is_valid(store, job, clock, sweep, body, caplog):
    """Attempts of a dead worker are lost; its record stays for a release that can read it."""
    alive, dead = new_event_id(), new_event_id()
    begin(store, job, row=0, owner=alive)
    begin(store, job, row=1, owner=dead)
    clock.advance(LEASE + 1)
    store.put_worker(alive, body, LEASE)
    store.put_worker(dead, body, 0)
    assert (sweep().marked, sweep().marked) == (1, 0)
    assert store.get_cell(job.ref, "a", 0).open
    assert store.get_cell(job.ref, "a", 1).status == Status.LOST
    assert {*workers(store)} == {alive, dead}
    logged = [each.args[0] for each in caplog.records if each.msg.startswith("cannot read the record of worker")]
    assert sorted(logged) == sorted([alive, dead])


@pytest.mark.parametrize("cut", ["running", "previous", "pending"])
def test_an_attempt_stays_open_while_its_live_worker_has_no_room_to_list_it(store, job, clock, sweep, cut):
    """It may be running or waiting to be written, although it is not listed. It is lost when its worker dies."""
    begin(store, job)
    clock.advance(LEASE)
    leases.renew(store, "w1", Report(**{cut: ["x" * leases.MOST_BYTES]}), LEASE)
    assert not sweep()
    assert begin(store, job, owner="w2").verdict is Verdict.DUPLICATE
    clock.advance(LEASE + 1)
    assert sweep().marked == 1


def test_a_record_without_room_for_received_rows_protects_no_attempt(store, job, clock, sweep):
    begin(store, job)
    clock.advance(LEASE)
    leases.renew(store, "w1", Report(received=[Received(job.ref, "x" * leases.MOST_BYTES, 1)]), LEASE)
    assert sweep().marked == 1


def test_an_attempt_of_a_dead_worker_is_lost_and_the_worker_record_deleted(store, job, clock, sweep):
    leases.renew(store, "w1", Report(), LEASE)
    begin(store, job)
    clock.advance(LEASE - 1)
    assert not sweep()
    clock.advance(2)
    swept = sweep()
    assert (swept.marked, swept.workers) == (1, 1)
    assert workers(store) == {}


def test_an_attempt_of_a_worker_without_a_record_is_lost_after_one_lease(store, job, clock, sweep):
    begin(store, job)
    clock.advance(LEASE - 1)
    assert not sweep()
    clock.advance(2)
    assert sweep().marked == 1


def test_an_attempt_without_an_owner_is_never_lost(store, job, clock, sweep):
    begin(store, job, owner=None)
    clock.advance(1e6)
    assert not sweep()


def test_a_lost_attempt_is_published_again_until_max_lost(store, job, clock, sweep, actions):
    actions.policy = True
    for losses in (1, 2, 3):
        reply = begin(store, job)
        assert (reply.verdict, reply.cell.attempt) == (Verdict.BEGUN, losses)
        clock.advance(LEASE + 1)
        sweep()
        assert store.get_cell(job.ref, "a", 0).losses == losses
        assert returned(store, job) == (("0", "") if losses < 3 else ("", ""))
        publish(store, job)
    assert len(actions.messages) == 2, "the sweep that returns a row also publishes it"
    assert store.get_cell(job.ref, "a", 0).status == Status.LOST
    assert store.get_cell(job.ref, "a", 0).message == "lost with its worker w1 (loss 3 of 3)"


def test_a_lost_attempt_of_another_app_is_left_to_it(store, job, clock, sweep, actions):
    actions.policy = None
    leases.renew(store, "w1", Report([cell_name_of(job)]), LEASE)
    begin(store, job)
    clock.advance(LEASE + 1)
    assert not sweep()
    assert store.get_cell(job.ref, "a", 0).open
    assert "w1" in workers(store), "the other sweep needs its record"


def test_a_lost_callback_becomes_due_again(store, job, clock, sweep, actions):
    actions.policy = True
    attempts.mark_lost(store, job.ref, "a", 0, begin(store, job).cell, new_event_id(), max_lost=3)
    completion.publish_due(store, job.ref, ("failure",), lambda *_: True)
    store.begin(job.ref, Begin(tag="failure", task_index=CALLBACK_ROW, owner="w1"))
    clock.advance(LEASE + 1)
    assert sweep().requeued == 1
    cell = store.get_cell(job.ref, "failure", CALLBACK_ROW)
    assert (cell.open, cell.delivery, cell.losses) == (False, Delivery(1), 1)
    assert actions.published == [("swept", "failure")]


@pytest.fixture
def with_callback(store, job, clock):
    """Return a function that publishes the callback of a failed job to an empty queue."""

    def publish():
        attempts.mark_lost(store, job.ref, "a", 0, begin(store, job).cell, new_event_id(), max_lost=3)
        completion.publish_due(store, job.ref, ("failure",), lambda *_: Place("callbacks"))
        leases.renew(store, "w1", Report(), 100 * LEASE)

    return publish


def sweeps(sweep, clock):
    """Sweep until what is lost has been missed for a lease. Return the last report."""
    assert not sweep()
    clock.advance(LEASE)
    return sweep()


def test_a_callback_whose_message_is_lost_becomes_due_again(store, job, clock, sweep, actions, with_callback):
    with_callback()
    assert sweeps(sweep, clock).requeued == 1
    cell = store.get_cell(job.ref, "failure", CALLBACK_ROW)
    assert (cell.status, cell.delivery) == (0, Delivery(1))
    assert cell.message == "published again: its message was lost, queue 'callbacks' is empty"
    assert sweep().callbacks == 1
    assert actions.published == [("swept", "failure")]


def test_a_callback_that_must_not_run_twice_ends_lost(store, job, clock, sweep, actions, with_callback):
    actions.vetoes = False
    with_callback()
    assert sweeps(sweep, clock).marked == 1
    cell = store.get_cell(job.ref, "failure", CALLBACK_ROW)
    assert (cell.status, cell.message) == (Status.LOST, "its message was lost: queue 'callbacks' is empty")
    assert not sweep()
    assert store.get_job(job.key).latches["failure"].place is None


def cancel(store, job):
    store.update_job(replace(store.get_job(job.key), cancelled=Cancellation("enough", 1)))


def assert_only_the_next_publication_begins(store, job):
    """Assert that the message of a callback that was made due again is refused if the broker still delivers it."""
    begins = (Begin(tag="failure", task_index=CALLBACK_ROW, owner="w3", delivery=Delivery(number)) for number in (0, 1))
    assert [store.begin(job.ref, begin).verdict for begin in begins] == [Verdict.STALE, Verdict.BEGUN]


def test_a_lost_callback_of_a_cancelled_job_becomes_due_again(store, job, clock, sweep, actions, with_callback):
    with_callback()
    cancel(store, job)
    assert sweeps(sweep, clock).requeued == 1
    assert store.get_job(job.key).latches["failure"].due
    assert_only_the_next_publication_begins(store, job)


@pytest.mark.parametrize("begun", [True, False])
def test_a_callback_of_a_cancelled_job_becomes_due_again_whose_worker_dies(
    store, job, clock, sweep, actions, with_callback, begun
):
    actions.policy = True
    with_callback()
    cancel(store, job)
    if begun:
        store.begin(job.ref, Begin(tag="failure", task_index=CALLBACK_ROW, owner="w2"))
        leases.renew(store, "w2", Report(), 1)
    else:
        leases.renew(store, "w2", Report(received=[Received(job.ref, "failure", CALLBACK_ROW)]), 1)
    clock.advance(LEASE + 2)
    assert sweep().requeued == 1
    cell = store.get_cell(job.ref, "failure", CALLBACK_ROW) or Cell()
    assert (cell.status, cell.open) == (int(begun), False)
    assert sweep().callbacks == 1
    assert_only_the_next_publication_begins(store, job)


def test_a_message_that_its_broker_delivers_after_max_lost_does_not_run(store, job, clock, sweep, actions):
    actions.policy = True
    for _ in range(3):
        begin(store, job)
        clock.advance(LEASE + 1)
        sweep()
    assert begin(store, job).verdict is Verdict.CLOSED
    cell = store.get_cell(job.ref, "a", 0)
    assert (cell.status, cell.final, cell.message) == (Status.LOST, True, "lost with its worker w1 (loss 3 of 3)")


def requeue(store, job, row=0):
    """Begin and requeue a row, as a task that raises ``Reject`` with ``requeue=True``."""
    begin(store, job, row)
    pause = Write.returned("a", row, "requeued by the task: busy", Delivery(), attempt=1, awaits_delivery=True)
    store.write(job.ref, pause)
    store.put_worker("idle", Report().to_json(), 100 * LEASE)


@pytest.fixture
def queue_of_row_0(actions):
    """Let only the queue of row 0 be known, which is empty."""
    actions.place_of = lambda job, tag, row, cell=None: Place("work") if row == 0 else None


@pytest.mark.usefixtures("queue_of_row_0")
@pytest.mark.parametrize("count", [1, None])
def test_a_requeued_message_that_merely_waits_is_not_published_again(store, job, clock, sweep, actions, count):
    """Its queue is long, no worker consumes it, or the broker does not tell how many messages it has."""
    actions.message_count = lambda _: count
    requeue(store, job)
    for _ in range(10):
        clock.advance(LEASE)
        assert not sweep()
    assert returned(store, job) == ("", "")
    actions.message_count = lambda _: 0
    assert not sweep()
    clock.advance(LEASE)
    assert sweeps(sweep, clock).requeued == 1


def test_a_requeued_message_of_a_callback_that_its_broker_dropped_becomes_due_again(
    store, job, clock, sweep, with_callback
):
    with_callback()
    grid = Grid(store, job.ref)
    attempt = grid.begin("failure", CALLBACK_ROW, owner="w1").cell.attempt
    pause = Write.returned("failure", CALLBACK_ROW, "requeued", Delivery(), attempt=attempt, awaits_delivery=True)
    store.write(job.ref, pause)
    clock.advance(LEASE)
    assert sweeps(sweep, clock).requeued == 1
    cell = store.get_cell(job.ref, "failure", CALLBACK_ROW)
    assert cell.message == "requeued; the broker did not deliver it again: sent again"
    assert sweep().callbacks == 1


def test_the_end_of_an_attempt_that_was_taken_over_from_a_stopped_worker_is_accepted(store, job, clock, sweep, actions):
    actions.policy = True
    begin(store, job)
    store.put_worker("w1", Report(stopping=True).to_json(), 0)
    clock.advance(2 * LEASE)
    assert sweep().requeued == 1
    assert store.get_cell(job.ref, "a", 0).losses == 0
    ending = Write.ending("a", 0, int(Status.FINISHED), None, attempt=1)
    assert store.write(job.ref, ending).cell.status == Status.FINISHED


def test_a_requeue_that_is_reported_after_its_worker_was_marked_lost_is_looked_after(store, job, clock, sweep):
    begin(store, job)
    clock.advance(2 * LEASE)
    assert sweep().marked == 1
    late = Write.returned("a", 0, "requeued", Delivery(), attempt=1, awaits_delivery=True)
    assert store.write(job.ref, late).cell.held


@pytest.mark.usefixtures("queue_of_row_0")
def test_a_requeued_message_that_its_broker_dropped_is_published_again_until_max_lost(
    store, job, clock, sweep, actions
):
    for losses in (1, 2):
        clock.advance(1)
        begin(store, job)
        attempt = store.get_cell(job.ref, "a", 0).attempt
        delivery = store.get_cell(job.ref, "a", 0).delivery
        pause = Write.returned("a", 0, "requeued by the task: busy", delivery, attempt=attempt, awaits_delivery=True)
        store.write(job.ref, pause)
        store.put_worker("idle", Report().to_json(), 100 * LEASE)
        clock.advance(LEASE)
        assert sweeps(sweep, clock).requeued == 1
        cell = store.get_cell(job.ref, "a", 0)
        assert (cell.status, cell.losses, returned(store, job)) == (Status.STARTED, losses, ("0", ""))
        assert cell.message == "requeued by the task: busy; the broker did not deliver it again: sent again"
        publish(store, job)
    clock.advance(1)
    begin(store, job)
    pause = Write.returned("a", 0, "requeued by the task: busy", Delivery(2), attempt=3, awaits_delivery=True)
    store.write(job.ref, pause)
    clock.advance(LEASE)
    assert sweeps(sweep, clock).marked == 1
    cell = store.get_cell(job.ref, "a", 0)
    assert (cell.status, cell.final) == (Status.REJECTED, True)
    assert cell.message == "requeued by the task: busy; the broker did not deliver it again"
    assert actions.published == [("swept", "failure")]
    assert not sweep()


def test_a_requeued_row_of_a_cancelled_job_is_not_published_again(store, job, clock, sweep, actions):
    requeue(store, job)
    completion.cancel(store, job.ref, "enough")
    clock.advance(3 * LEASE)
    sweep()
    assert returned(store, job) == ("", "")
    assert store.get_cell(job.ref, "a", 0).status == Status.CANCELLED
    assert store.get_job(job.key).settled


@pytest.mark.usefixtures("queue_of_row_0")
@pytest.mark.parametrize("room", [True, False])
def test_a_requeued_message_that_a_live_worker_has_received_is_not_published_again(
    store, job, clock, sweep, actions, room
):
    requeue(store, job)
    clock.advance(LEASE)
    row = 0 if room else 1
    leases.renew(store, "w2", Report(received=[Received(job.ref, "a", row)]), LEASE)
    if not room:
        leases.renew(store, "w3", Report(received=[Received(job.ref, "x" * leases.MOST_BYTES, 0)]), LEASE)
    assert not sweep()
    clock.advance(LEASE / 2)
    assert not sweep()
    assert begin(store, job, owner="w2").verdict is Verdict.BEGUN
    assert returned(store, job) == ("", "")


@pytest.mark.usefixtures("queue_of_row_0")
def test_a_requeued_row_that_begins_during_the_sweep_is_not_changed(store, job, clock, sweep, actions):
    requeue(store, job)
    clock.advance(LEASE)
    assert not sweep()
    clock.advance(LEASE)
    late = FaultyStore(store)
    late.at("write", lambda _: begin(store, job, owner="w2"))
    Sweep(late, actions, lease=LEASE, max_lost=3).run()
    assert store.get_cell(job.ref, "a", 0).owner == "w2"


def test_a_begin_that_replaces_a_dead_attempt_counts_a_loss(store, job, clock):
    begin(store, job)
    assert begin(store, job, owner="w2").cell.losses == 1
    assert begin(store, job, owner="w3").cell.losses == 2
    reply = begin(store, job, owner="w4")
    assert (reply.verdict, reply.decided) == (Verdict.CLOSED, ("failure",))
    assert store.get_cell(job.ref, "a", 0).status == Status.LOST


def test_a_retry_does_not_count_as_a_loss(store, job):
    begin(store, job)
    later = Begin(tag="a", task_index=0, event_id=new_event_id(), delivery=Delivery(0, 0, 1), owner="w1")
    assert store.begin(job.ref, later).cell.losses == 0


def test_received_rows_of_a_dead_worker_are_published_again(store, job, clock, sweep, actions):
    begin(store, job, row=2, owner=None)
    rows = [Received(job.ref, "a", row) for row in range(3)]
    leases.renew(store, "w1", Report(received=rows), LEASE)
    clock.advance(LEASE + 1)
    swept = sweep()
    assert (swept.requeued, swept.marked, swept.published) == (2, 0, 1)
    assert returned(store, job) == ("", "0-1")
    cell = store.get_cell(job.ref, "a", 0)
    assert (cell.status, cell.message) == (0, "sent again: received by worker w1, which is dead")
    assert workers(store) == {}


def test_received_rows_that_the_broker_delivers_again_at_once_are_not_changed(store, job, clock, sweep, actions):
    actions.broker_redelivers = True
    leases.renew(store, "w1", Report(received=[Received(job.ref, "a", 0)]), LEASE)
    clock.advance(LEASE + 1)
    assert sweep().workers == 1
    assert (store.get_cell(job.ref, "a", 0), returned(store, job)) == (None, ("", ""))
    assert begin(store, job).verdict is Verdict.BEGUN


def test_a_received_row_that_has_ended_is_not_changed(store, job, clock, sweep, actions):
    for row in (0, 1):
        begin(store, job, row=row, owner=None)
        end(store, job, row)
    leases.renew(store, "w1", Report(received=[Received(job.ref, "a", row) for row in (0, 1)]), LEASE)
    clock.advance(LEASE + 1)
    assert not sweep()
    assert [store.get_cell(job.ref, "a", row).status for row in (0, 1)] == [Status.FINISHED] * 2
    assert returned(store, job) == ("", "")


MOVES = {
    "it has ended": lambda store, job: end(store, job, 0),
    "another delivery has begun": lambda store, job: begin(store, job, owner="w2"),
    "its worker has come back": lambda store, job: leases.renew(store, "w1", Report([cell_name_of(job)]), LEASE),
}


@pytest.mark.parametrize("policy", [True, False])
@pytest.mark.parametrize("move", MOVES)
def test_a_sweep_that_acts_on_outdated_reads_changes_nothing(store, job, clock, actions, move, policy):
    actions.policy = policy
    leases.renew(store, "w1", Report([cell_name_of(job)]), LEASE)
    begin(store, job)
    clock.advance(LEASE + 1)
    seen = []
    late = FaultyStore(store)
    late.at(
        "get_worker",  # the attempts are listed, and this one is about to be looked at again
        lambda _: (MOVES[move](store, job), seen.append(store.get_cell(job.ref, "a", 0))),
    )
    Sweep(late, actions, lease=LEASE, max_lost=3).run()
    assert store.get_cell(job.ref, "a", 0) == seen[0]
    assert ("w1" in workers(store)) == (move == "its worker has come back")
    assert actions.published == []


def test_a_received_retry_of_a_dead_worker_is_published_again(store, job, clock, sweep, actions):
    for row in (0, 1):
        cell = begin(store, job, row=row).cell
        pause = {"status": 1, "ends_attempt": True, "next_delivery": Delivery(0, 0, 1)}
        store.write(job.ref, Write(tag="a", task_index=row, event_id=new_event_id(), attempt=cell.attempt, **pause))
    rows = [Received(job.ref, "a", 0, Delivery(0, 0, 1)), Received(job.ref, "a", 1, Delivery())]
    leases.renew(store, "w2", Report(received=rows), LEASE)
    clock.advance(LEASE + 1)
    sweep()
    assert returned(store, job) == ("0", ""), "the delivery of row 1 has begun"
    assert store.get_cell(job.ref, "a", 0).delivery == Delivery(1, 0, 1)


def test_an_unpublished_callback_is_published_after_a_lease(store, job, clock, sweep, actions):
    attempts.mark_lost(store, job.ref, "a", 0, begin(store, job).cell, new_event_id(), max_lost=3)
    assert not sweep()
    clock.advance(LEASE)
    assert sweep().callbacks == 1
    assert actions.published == [("swept", "failure")]


@pytest.fixture
def submitted(store):
    """Return a function that creates a job whose submitter has claimed its first row."""

    def submit(max_in_flight=None, lease=60.0):
        job = replace(new_job("half", 5, ("a",)), flow=Flow(max_in_flight))
        store.add_block(job.ref, 0, b"", 60)
        job = store.create_job(job)
        store.claim(job.ref, ClaimRequest(publisher="host:1:x/1.1", limit=1, lease=lease))
        return job

    return submit


def test_the_messages_of_a_dead_submitter_are_published(submitted, clock, sweep, actions):
    submitted()
    assert not sweep()
    clock.advance(61)
    assert sweep().published == 1
    assert actions.messages == [("half", 1, {"host:1:x/1.1"}, set())]


def test_the_claims_of_a_dead_child_are_taken_over(store, submitted, clock, sweep, actions):
    job = submitted(lease=0)
    store.claim(job.ref, ClaimRequest(publisher="w1/7.1", limit=1, ended=frozenset({"host:1:x/1.1"})))
    store.claim(job.ref, ClaimRequest(publisher="w1/8.1", limit=3))
    leases.renew(store, "w1", Report(processes=[7, 8]), LEASE)
    assert not sweep()
    clock.advance(1)
    leases.renew(store, "w1", Report(processes=[8]), LEASE)
    assert sweep().published == 1
    assert actions.messages == [("half", 5, {"w1/7.1"}, set())]


@pytest.mark.parametrize(("before", "gone"), [(1, "dead"), (LEASE, "ended")])
def test_the_last_claims_of_a_dead_worker_are_taken_over(store, submitted, clock, sweep, actions, before, gone):
    """What a process claimed a renewal before the last record that lists it, it has published."""
    job = submitted(lease=0)
    store.claim(job.ref, ClaimRequest(publisher="w1/7.1", limit=4, ended=frozenset({"host:1:x/1.1"})))
    clock.advance(before)
    leases.renew(store, "w1", Report(processes=[7]), LEASE)
    assert not sweep()
    clock.advance(LEASE + 1)
    sweep()
    dead, ended = ({"w1/7.1"}, set()) if gone == "dead" else (set(), {"w1/7.1"})
    assert actions.messages == [("half", 5, dead, ended)]
    assert workers(store) == {}


def test_the_claims_of_a_process_without_a_record_are_taken_over_after_a_lease(store, submitted, clock, sweep, actions):
    """A process that ends releases its claims, so this one has died; or its first record is not written yet."""
    job = submitted(lease=0)
    store.claim(job.ref, ClaimRequest(publisher="w1/7.1", limit=4, ended=frozenset({"host:1:x/1.1"})))
    assert not sweep()
    clock.advance(LEASE + 1)
    sweep()
    assert actions.messages == [("half", 5, {"w1/7.1"}, set())]


def test_the_record_of_a_dead_worker_is_kept_while_another_app_needs_it(store, submitted, clock, sweep, actions):
    job = submitted(lease=0)
    store.claim(job.ref, ClaimRequest(publisher="w1/7.1", limit=4, ended=frozenset({"host:1:x/1.1"})))
    leases.renew(store, "w1", Report(processes=[7]), LEASE)
    clock.advance(LEASE + 1)
    actions.own = "another app's"
    sweep()
    assert "w1" in workers(store)


def test_the_claim_of_a_sweep_ends_with_its_lease(store, submitted, clock, sweep, actions):
    job = submitted(lease=0)
    leases.renew(store, "w1", Report(processes=[7]), 100)
    request = ClaimRequest(publisher="w1/7.1", limit=4, lease=30, ended=frozenset({"host:1:x/1.1"}))
    store.claim(job.ref, request)
    assert not sweep()
    clock.advance(31)
    sweep()
    assert [dead for _, _, dead, _ in actions.messages] == [{"w1/7.1"}]


def test_a_sweep_fills_a_window(store, submitted, clock, sweep, actions):
    job = submitted(2)
    sweep()
    assert actions.messages == [("half", 1, set(), set())]
    completion.cancel(store, job.ref, "enough")
    sweep()
    assert len(actions.messages) == 1, "a cancelled job has no messages to publish"


def test_a_sweep_leaves_what_a_pause_holds_back(store, job, submitted, clock, sweep, actions):
    store.update_job(replace(store.get_job(job.key), flow=Flow(paused=True)))
    store.write(job.ref, Write.sent_back("a", 0, "why", attempt=0))
    assert not sweep()
    begin(store, job, row=1)
    store.write(job.ref, Write.sent_back("a", 1, "why", attempt=1, is_open=True))
    assert sweep().published == 1, "a row that has begun goes on"


@pytest.mark.parametrize("vetoes", [True, False])
def test_a_lost_message_is_due_again_or_its_cell_ends_lost(store, job, clock, sweep, actions, vetoes):
    actions.empty_queue, actions.vetoes = "work", vetoes
    begin(store, job, row=2)
    leases.renew(store, "w1", Report([cell_name_of(job, 2)]), 100 * LEASE)
    assert not sweep()
    clock.advance(LEASE)
    swept = sweep()
    assert (swept.requeued, swept.marked) == ((2, 0) if vetoes else (0, 2))
    cell = store.get_cell(job.ref, "a", 0)
    if vetoes:
        assert returned(store, job) == ("", "0-1")
        assert (cell.status, cell.message) == (0, "published again: its message was lost, queue 'work' is empty")
    else:
        assert (cell.status, cell.message) == (Status.LOST, "its message was lost: queue 'work' is empty")
        assert actions.published == [("swept", "failure")]


def retry(store, job, row=0, **fields):
    """Begin an attempt of a row, and end it because its task retries."""
    cell = begin(store, job, row).cell
    later = cell.delivery._replace(retries=cell.delivery.retries + 1)
    store.write(job.ref, Write.returned("a", row, "retry", later, attempt=cell.attempt, **fields))


@pytest.mark.parametrize("vetoes", [True, False])
def test_a_lost_retry_is_due_again_or_its_cell_ends_lost(store, job, clock, sweep, actions, vetoes):
    actions.empty_queue, actions.vetoes = "work", vetoes
    leases.renew(store, "w1", Report(), 100 * LEASE)
    for row in range(3):
        retry(store, job, row)
    assert not sweep()
    clock.advance(LEASE)
    swept = sweep()
    assert (swept.requeued, swept.marked) == ((3, 0) if vetoes else (0, 3))
    cell = store.get_cell(job.ref, "a", 0)
    if vetoes:
        assert returned(store, job) == ("0-2", "")
        assert (cell.status, cell.delivery) == (1, Delivery(1, 0, 1))
    else:
        assert (cell.status, cell.message) == (Status.LOST, "its message was lost: queue 'work' is empty")


def test_a_retry_whose_task_has_retried_again_is_not_lost(store, job, clock, sweep, actions):
    actions.empty_queue = "work"
    leases.renew(store, "w1", Report(), 100 * LEASE)
    for row in range(3):
        retry(store, job, row)
    assert not sweep()
    clock.advance(LEASE / 2)
    retry(store, job, 1)
    assert not sweep()
    clock.advance(LEASE / 2)
    assert sweep().requeued == 2
    assert returned(store, job) == ("0,2", "")


def test_a_lost_retry_of_a_cancelled_job_ends_cancelled(store, job, clock, sweep, actions):
    actions.empty_queue = "work"
    leases.renew(store, "w1", Report(), 100 * LEASE)
    retry(store, job)
    cancel(store, job)
    assert not sweep()
    clock.advance(LEASE)
    sweep()
    assert store.get_job(job.key).settled
    cell = store.get_cell(job.ref, "a", 0)
    assert (cell.status, cell.message) == (Status.CANCELLED, "enough")


def test_a_sweep_drops_expired_drafts(store, clock, sweep):
    job = new_job("never created", 1, ("a",))
    store.add_block(job.ref, 0, b"", 60)
    sweep()
    assert store.get_block(job.ref, 0) is not None
    clock.advance(61)
    sweep()
    assert store.get_block(job.ref, 0) is None


def test_only_one_sweeper_holds_the_lock(store, clock):
    assert leases.try_acquire(store, "w1", 30.0)
    assert not leases.try_acquire(store, "w2", 30.0)
    assert leases.try_acquire(store, "w1", 30.0)
    clock.advance(31)
    assert leases.try_acquire(store, "w2", 30.0)
    assert workers(store) == {}


def test_the_sweep_command_reports_what_it_changed(tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    (tmp_path / "swept.py").write_text(
        "from celery import Celery\nfrom celery_statemanager import StateManager\n"
        f"app = Celery('swept', statemanager_store_url={url!r})\nStateManager(app)\n"
    )
    with open_store(url) as store:
        store.put_worker("dead", Report().to_json(), 0)
    command = [sys.executable, "-m", "celery", "-A", "swept", "sweep-state"]

    def run(*options):
        return subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )

    nothing_else = dict.fromkeys(("marked", "requeued", "callbacks", "published", "stalled"), 0)
    assert json.loads(run("--format", "json").stdout) == {**nothing_else, "workers": 1}
    assert "0  attempts marked LOST" in run().stdout


def test_beat_runs_sweeps(tmp_path, eventually):
    """A beat process without a worker deletes the record of a dead worker."""
    url = f"sqlite:///{tmp_path}/states.db"
    (tmp_path / "scheduled.py").write_text(
        "from celery import Celery\nfrom celery_statemanager import StateManager\n"
        f"app = Celery('scheduled', broker='memory://', statemanager_store_url={url!r}, statemanager_sweep_interval=0.1,\n"
        "    statemanager_lease=1.0)\n"
        "StateManager(app)\n"
    )
    store = open_store(url)
    store.put_worker("dead", Report().to_json(), 0)
    beat = subprocess.Popen([sys.executable, "-m", "celery", "-A", "scheduled", "beat"], cwd=tmp_path, env=os.environ)
    try:
        assert eventually(lambda: not workers(store))
    finally:
        beat.terminate()
        beat.wait(20)


def test_a_job_whose_deadline_has_passed_is_cancelled(store, clock, sweep, actions):
    grid = Grid.submitted(store, 2, policy=Policy(deadline=store.now() + 60_000_000))
    grid.begin("a", 0)
    clock.advance(59)
    sweep()
    assert (grid.job.cancelled, actions.stopped) == (None, [])
    clock.advance(1)
    sweep()
    assert grid.job.cancelled.reason == "its deadline of 2023-11-14 22:14:20 UTC passed"
    assert actions.stopped == [("job",)]
    clock.advance(60)
    sweep()
    assert actions.stopped == [("job",)]
    assert set(grid.end("a", 0, FAILED).decided) == {"failure", "settled"}


def test_a_deadline_that_passes_while_no_row_runs_settles_the_job(store, clock, sweep, actions):
    grid = Grid.submitted(store, 2, policy=Policy(deadline=store.now() + 60_000_000))
    clock.advance(61)
    sweep()
    assert actions.stopped == [("job", "settled")]
    assert grid.decided == {"settled"}
