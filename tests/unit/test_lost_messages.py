"""Which messages count as lost: those in no queue and with no worker for one lease (rule R19)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager import leases, lost_messages
from celery_statemanager.at_work import AtWork
from celery_statemanager.completion import publish_due
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import Received, Report
from celery_statemanager.lost_messages import LostMessages
from celery_statemanager.records import CALLBACK_ROW, ClaimRequest, Delivery, Flow, Place, Write
from celery_statemanager.stores import open_store
from celery_statemanager.stores.wrapped import WrappedStore
from celery_statemanager.suspects import PutOff
from celery_statemanager.testing import FakeClock, Grid
from celery_statemanager.testing.kit import FAILED

LEASE = 30.0


class StubQueues:
    """A broker with the queues that a test names, and the rows of messages that go to a queue of their own."""

    sends_ahead = False
    keeps_order = False
    put_back_delay = 0.0

    def __init__(self):
        self.counts = {"work": 0}
        self.special = {}
        self.delayed = {}
        self.asked = 0
        self.cells = []
        self.foreign = ()
        self.retries = None

    def queues_of(self, job):
        return frozenset(["work", *filter(None, self.special.values())])

    def place_of(self, job, tag, row, cell=None):
        self.asked += 1
        self.cells.append((tag, row, cell))
        queue = self.special.get((tag, row), "work")
        return queue and Place(queue, self.delayed.get((tag, row), 0))

    def place_of_callback(self, job, latch, cell):
        self.cells.append((latch, cell))
        return None if latch in self.foreign else self.retries if cell.attempt else job.latches[latch].place

    def message_count(self, queue):
        return self.counts.get(queue)


@pytest.fixture
def clock():
    return FakeClock()


class ReadStore(WrappedStore):
    """A store that counts how often the cells of a job are read, and how often only their counts."""

    def __init__(self, inner):
        super().__init__(inner)
        self.reads = {True: 0, False: 0}
        self.cells_read = 0

    def get_cell(self, ref, tag, task_index):
        self.cells_read += 1
        return super().get_cell(ref, tag, task_index)

    def column_summaries(self, ref, tag=None, *, indexes=False):
        self.reads[indexes] += 1
        return super().column_summaries(ref, tag, indexes=indexes)


@pytest.fixture
def store(clock):
    return ReadStore(open_store("memory://", clock=clock))


@pytest.fixture
def queues():
    return StubQueues()


@pytest.fixture
def look(store, queues, clock):
    """Return a function that looks for lost messages, as a sweep does, after some seconds."""

    def look(*grids, after=0.0, unpublished=(), alive=()):
        clock.advance(after)
        lease, now = round(LEASE * 1e6), store.now()
        at_work = AtWork(store, lease, now, 0, sends_ahead=queues.sends_ahead)
        for attempt in store.list_open_attempts():
            at_work.add(attempt)
        lost = LostMessages(store, queues, lease, now, at_work)
        for grid in grids:
            lost.look_at_callbacks(grid.job)
            lost.look_at(grid.job, store.get_outbox(grid.ref), IndexSet(unpublished))
        for each in lost.cells_to_read():
            lost.look_at_cell(each)
        found = {}
        for each in lost.finish():
            key = (each.ref.key.job_id, each.tag)
            found[key] = (
                str(CALLBACK_ROW) if each.rows == (CALLBACK_ROW,) else each.rows.union(found.get(key, IndexSet()))
            )
        return {key: str(rows) for key, rows in found.items()}

    return look


def test_a_message_is_lost_one_lease_after_its_queue_was_found_empty(store, look):
    grid = Grid.submitted(store, 4)
    grid.run("a", 0)
    grid.begin("a", 1, owner="w")
    assert look(grid) == {}
    assert look(grid, after=LEASE / 2) == {}
    assert look(grid, after=LEASE / 2) == {("job", "a"): "2-3"}
    assert look(grid) == {}, "it is looked at again from now on"
    assert look(grid, after=LEASE) == {("job", "a"): "2-3"}


def test_a_message_in_its_queue_is_not_lost(store, look, queues):
    grid = Grid.submitted(store, 3)
    for number in range(6):
        queues.counts["work"] = 0 if number == 3 else 1
        assert look(grid, after=LEASE / 2) == {}


@pytest.mark.parametrize("count", [None, 5])
def test_a_queue_that_is_not_known_to_be_empty_proves_nothing(store, look, queues, count):
    grid = Grid.submitted(store, 3)
    queues.counts["work"] = count
    assert [look(grid, after=LEASE) for _ in range(4)] == [{}] * 4


def test_a_message_that_a_live_worker_lists_is_not_lost(store, look):
    grid = Grid.submitted(store, 4)
    rows = [Received(grid.ref, "a", 0)]
    report = Report(running=[leases.cell_name(grid.ref, "a", 1)], received=rows)
    leases.renew(store, "w", report, 100 * LEASE)
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): "2-3"}


@pytest.mark.parametrize("record", ["cut", "unreadable"])
def test_no_message_is_lost_while_a_record_does_not_list_all(store, look, record):
    grid = Grid.submitted(store, 2)
    if record == "cut":
        leases.renew(store, "w", Report(received=[Received(grid.ref, "x" * leases.MOST_BYTES, 0)]), 100 * LEASE)
    else:
        store.put_worker("w", "[]", 100 * LEASE)
    assert [look(grid, after=LEASE) for _ in range(3)] == [{}] * 3
    leases.renew(store, "w", Report(), 100 * LEASE)
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): "0-1"}


@pytest.mark.parametrize("report", [Report(in_main_loop=True), Report(idle=LEASE / 2)], ids=["solo", "blocked"])
@pytest.mark.parametrize("sends_ahead", [True, False])
def test_a_worker_that_reads_no_messages_may_have_been_sent_some(store, look, queues, report, sends_ahead):
    grid = Grid.submitted(store, 2)
    queues.sends_ahead = sends_ahead
    leases.renew(store, "w", report, 100 * LEASE)
    look(grid)
    assert look(grid, after=LEASE) == ({} if sends_ahead else {("job", "a"): "0-1"})


def test_a_message_that_was_published_meanwhile_is_looked_at_later(store, look):
    grid = Grid.submitted(store, 6, published=2)
    look(grid)
    store.claim(grid.ref, ClaimRequest(publisher="p", limit=2))
    assert look(grid, after=LEASE) == {("job", "a"): "0-1"}
    assert look(grid, after=LEASE / 2) == {}
    assert look(grid, after=LEASE / 2) == {("job", "a"): "0-3"}


def test_rows_that_are_due_again_are_not_lost(store, look):
    grid = Grid.submitted(store, 3)
    store.write(grid.ref, Write.sent_back("a", 1, "why", attempt=0))
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): "0,2"}


def test_the_next_stage_of_a_row_can_be_lost(store, look, queues):
    grid = Grid.submitted(store, 4, ("a", "b"))
    queues.counts["other"] = 0
    queues.special = {("a", row): "full" for row in range(4)} | {("b", 3): None}
    queues.counts["full"] = 9
    for row in (1, 2, 3):
        grid.run("a", row)
    grid.begin("b", 2)
    look(grid)
    assert look(grid, after=LEASE) == {("job", "b"): "1"}, "row 0 waits in its queue, the place of row 3 is unknown"


def test_a_delayed_message_is_lost_only_after_its_delay(store, look, queues, clock):
    grid = Grid.submitted(store, 2, ("a", "b"))
    for row in range(2):
        grid.run("a", row)
    queues.delayed = {("b", 1): store.now() + round(1.5 * LEASE * 1e6)}
    look(grid)
    assert look(grid, after=LEASE) == {("job", "b"): "0"}
    grid.begin("b", 0)
    queues.asked = 0
    look(grid, after=LEASE * 0.4)
    assert queues.asked == 0, "until then it is not looked at"
    assert look(grid, after=LEASE * 0.1) == {}
    assert look(grid, after=LEASE) == {("job", "b"): "1"}


def test_a_pause_of_the_sweeps_proves_nothing(store, look):
    grid = Grid.submitted(store, 2)
    look(grid)
    assert look(grid, after=3 * LEASE) == {}
    assert look(grid, after=LEASE) == {("job", "a"): "0-1"}


def test_each_queue_is_judged_alone(store, look, queues):
    grid, other = Grid.submitted(store, 2), Grid.submitted(store, 2, job_id="other")
    queues.special = {("a", 1): "slow"}
    queues.counts["slow"] = 3
    look(grid, other)
    queues.counts["slow"] = 0
    assert look(grid, other, after=LEASE) == {("job", "a"): "0", ("other", "a"): "0"}
    assert look(grid, other, after=LEASE)["job", "a"] == "0-1"


def test_nothing_is_stored_while_nothing_is_suspect(store, look, queues):
    grid = Grid.submitted(store, 1)
    queues.counts["work"] = 1
    look(grid)
    assert store.get_worker("~queues") is None
    assert [*leases.each_worker(store)] == []


def retry(grid, row, **fields):
    """Begin the next attempt of a row, and end it because its task retries."""
    delivery = grid.cell("a", row).delivery
    attempt = grid.begin("a", row, owner="w", delivery=delivery).cell.attempt
    later = delivery._replace(retries=delivery.retries + 1)
    grid.store.write(grid.ref, Write.returned("a", row, "retry", later, attempt=attempt, **fields))


def test_a_retry_can_be_lost(store, look, queues):
    grid = Grid.submitted(store, 5)
    for row in range(4):
        retry(grid, row)
    grid.begin("a", 2, owner="w", delivery=grid.cell("a", 2).delivery)
    grid.begin("a", 4, owner="w")
    leases.renew(store, "w", Report(received=[Received(grid.ref, "a", 3)]), 100 * LEASE)
    assert look(grid) == {}
    assert look(grid, after=LEASE / 2) == {}
    assert look(grid, after=LEASE / 2) == {("job", "a"): "0-1"}
    assert {cell and cell.attempt for _, row, cell in queues.cells if row < 2} == {1}


def test_a_message_that_the_broker_is_to_deliver_again_is_not_looked_for_among_the_retries(store, look):
    """See ``look_at_requeued``."""
    grid = Grid.submitted(store, 1)
    attempt = grid.begin("a", 0, owner="w").cell.attempt
    store.write(grid.ref, Write.returned("a", 0, "requeued", attempt=attempt, awaits_delivery=True))
    assert [look(grid, after=LEASE) for _ in range(4)] == [{}] * 4


def test_a_retry_is_lost_only_after_its_eta(store, look, queues, clock):
    grid = Grid.submitted(store, 1)
    retry(grid, 0)
    queues.delayed = {("a", 0): store.now() + round(2 * LEASE * 1e6)}
    look(grid)
    queues.asked = 0
    assert [look(grid, after=LEASE / 2) for _ in range(3)] == [{}] * 3
    assert queues.asked == 0, "its cell is not read before"
    assert [look(grid, after=LEASE / 2) for _ in range(3)] == [{}, {}, {("job", "a"): "0"}]


def test_a_retry_in_a_queue_that_is_not_empty_is_not_lost(store, look, queues):
    grid = Grid.submitted(store, 2)
    for row in range(2):
        retry(grid, row)
    queues.counts["slow"] = 1
    queues.special = {("a", 0): "slow", ("a", 1): None}
    assert [look(grid, after=LEASE) for _ in range(4)] == [{}] * 4
    queues.counts["slow"] = 0
    look(grid, after=LEASE)
    assert look(grid, after=LEASE) == {("job", "a"): "0"}, "the place of row 1 is unknown"


def test_the_number_of_cells_that_a_sweep_reads_is_limited(store, look, queues, monkeypatch):
    grid = Grid.submitted(store, 6)
    for row in range(6):
        retry(grid, row)
    monkeypatch.setattr(lost_messages, "MOST_CELLS", 3)
    queues.counts["slow"] = 1
    queues.special = dict.fromkeys([("a", 0), ("a", 1)], "slow")
    look(grid)
    assert queues.asked == 3
    look(grid, after=1)
    assert {row for _, row, _ in queues.cells} == {0, 1, 2, 3, 4}, "what was not suspect is not read again"
    for _ in range(4):
        for row in IndexSet.parse(look(grid, after=LEASE).get(("job", "a"), "")):
            grid.begin("a", row, owner="w", delivery=grid.cell("a", row).delivery)
    assert {row for row in range(6) if not grid.cell("a", row).open} == {0, 1}, "all others were found"


@pytest.fixture
def callback(store):
    """Return a function that creates a job whose callback was published to a queue."""

    def create(job_id="job", **place):
        grid = Grid.submitted(store, 1, job_id=job_id, success="call me")
        grid.run("a", 0)
        sent = Place(place.pop("queue", "work"), **place)
        assert publish_due(store, grid.ref, ["success"], lambda *_: sent) == 1
        store.cells_read = 0
        return grid

    return create


def test_a_published_callback_can_be_lost(store, look, callback):
    grid = callback()
    assert grid.job.due
    assert [look(grid, after=LEASE / 2) for _ in range(3)] == [{}, {}, {("job", "success"): "-1"}]


def test_a_callback_in_a_queue_that_is_not_empty_is_not_lost(store, look, queues, callback):
    grid = callback(queue="full")
    queues.counts["full"] = 3
    assert [look(grid, after=LEASE) for _ in range(4)] == [{}] * 4
    assert store.cells_read == 0


def test_a_callback_is_lost_only_after_its_eta(store, look, callback):
    grid = callback(delayed_until=store.now() + round(2 * LEASE * 1e6))
    assert [look(grid, after=LEASE / 2) for _ in range(3)] == [{}] * 3
    assert store.cells_read == 0
    assert [look(grid, after=LEASE / 2) for _ in range(3)] == [{}, {}, {("job", "success"): "-1"}]


def test_a_callback_that_runs_or_that_a_worker_has_received_is_not_lost(store, look, callback):
    running, received = callback(), callback("other")
    running.begin("success", CALLBACK_ROW, owner="w")
    rows = [Received(received.ref, "success", CALLBACK_ROW)]
    leases.renew(store, "w", Report(received=rows), 100 * LEASE)
    assert [look(running, received, after=LEASE) for _ in range(4)] == [{}] * 4
    assert running.job.due


def test_the_end_of_a_callback_is_recorded(store, look, callback):
    grid = callback()
    grid.run("success", CALLBACK_ROW, FAILED)
    published_at = grid.job.latches["success"].published_at
    assert look(grid) == {}
    latch = grid.job.latches["success"]
    assert (latch.place, latch.published_at, latch.due, grid.job.due) == (None, published_at, False, False)


def test_a_retry_of_a_callback_can_be_lost(store, look, queues, callback):
    grid = callback()
    attempt = grid.begin("success", CALLBACK_ROW, owner="w").cell.attempt
    later = Write.returned("success", CALLBACK_ROW, "retry", Delivery(0, 0, 1), attempt=attempt)
    store.write(grid.ref, later)
    queues.counts["slow"] = 1
    queues.retries = Place("slow")
    assert [look(grid, after=LEASE) for _ in range(3)] == [{}] * 3
    queues.retries = Place("work", store.now() + 1)
    assert look(grid) == {}
    assert [look(grid, after=LEASE) for _ in range(2)] == [{}, {("job", "success"): "-1"}]


def test_a_callback_of_another_app_is_not_looked_at(store, look, queues, callback):
    grid = callback()
    queues.foreign = ("success",)
    assert [look(grid, after=LEASE) for _ in range(4)] == [{}] * 4
    assert store.cells_read == 0


def test_a_callback_of_an_earlier_generation_can_be_lost(store, look):
    grid = Grid.submitted(store, 1, failure="call me")
    grid.run("a", 0, FAILED)
    publish_due(store, grid.ref, ["failure"], lambda *_: Place("work"))
    grid.update(lambda job: job.with_generation(IndexSet([0]), 1))
    grid.update(lambda job: replace(job, generation=replace(job.generation, rows_to_reset=IndexSet())))
    look(grid)
    assert look(grid, after=LEASE) == {("job", "failure"): "-1"}
    grid.run("failure", CALLBACK_ROW)
    look(grid)
    assert grid.job.latches["failure.1"].place is None


def test_only_retries_of_a_cancelled_job_can_be_lost(store, look):
    """They keep it from settling. What has not begun is cancelled."""
    grid = Grid.submitted(store, 3)
    retry(grid, 1)
    grid.cancel()
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): "1"}


def test_rows_that_a_dead_publisher_had_claimed_are_not_lost(store, look):
    grid = Grid.submitted(store, 3)
    for _ in range(4):
        assert look(grid, after=LEASE, unpublished=[0, 2]) in ({}, {("job", "a"): "1"})


def test_only_the_last_times_are_remembered():
    times = PutOff(most=3)
    for name in ("a", "b", "a", "c", "d"):
        times.put(name, ord(name))
    assert [times.until(name) for name in "abcd"] == [97, 0, 99, 100]


ROWS = 2_000


def submitted_and_begun(store, rows=ROWS, left=0):
    """Submit a large job of which the last rows run, and some more are left."""
    grid = Grid.submitted(store, rows)
    for row in range(rows - 3 - left):
        grid.run("a", row)
    for row in range(rows - 3 - left, rows - left):
        grid.begin("a", row, owner="w")
    return grid


def test_the_cells_of_a_large_job_are_not_read_while_its_messages_run(store, look):
    grid = submitted_and_begun(store)
    look(grid)
    look(grid, after=LEASE)
    assert store.reads == {True: 0, False: 2}


def test_the_cells_of_a_large_job_are_not_read_while_workers_have_received_its_messages(store, look):
    grid = submitted_and_begun(store, left=2)
    rows = [Received(grid.ref, "a", row) for row in (ROWS - 2, ROWS - 1)]
    leases.renew(store, "w", Report(received=rows), 100 * LEASE)
    look(grid)
    assert store.reads == {True: 0, False: 1}
    leases.renew(store, "w", Report(received=rows[1:]), 100 * LEASE)
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): str(ROWS - 2)}


def test_the_cells_of_a_large_job_are_not_read_in_each_sweep_if_its_messages_wait_in_another_queue(store, look, queues):
    rows = 40_000
    grid = Grid.submitted(store, rows)
    grid.run("a", 0)
    queues.counts["full"] = 1
    queues.special = {("a", row): "full" for row in range(rows)}
    for _ in range(6):
        look(grid, after=LEASE / 2)
    assert store.reads[True] == 1
    for _ in range(3):
        look(grid, after=LEASE)
    assert store.reads[True] == 2


def test_no_cell_is_read_while_a_record_does_not_list_all(store, look):
    grid = Grid.submitted(store, 2)
    store.put_worker("w", "[]", 100 * LEASE)
    look(grid)
    assert store.reads == {True: 0, False: 0}


def test_a_paused_job_loses_messages_too(store, look):
    grid = Grid.submitted(store, 2)
    grid.update(lambda job: replace(job, flow=Flow(paused=True)))
    look(grid)
    assert look(grid, after=LEASE) == {("job", "a"): "0-1"}
