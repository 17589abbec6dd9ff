"""Which messages count as lost in a queue that is never empty: those that later messages have overtaken (rule R19)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sweep_actions import RecordedActions

from celery_statemanager import leases, lost_messages, put_back
from celery_statemanager.at_work import AtWork
from celery_statemanager.completion import publish_due
from celery_statemanager.errors import StoreError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import Received, Report
from celery_statemanager.lost_messages import LostMessages
from celery_statemanager.overtaken import MOST_QUEUES, MOST_SNAPSHOTS, Order, Overtaken
from celery_statemanager.records import CALLBACK_ROW, ClaimRequest, Delivery, Flow, Place, Returned, Write
from celery_statemanager.stores.wrapped import WrappedStore
from celery_statemanager.suspects import RECORD, Notes, Stage, Suspects
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import Grid

LEASE = 30.0
SWEEP = 15.0


class BusyQueues:
    """A broker whose queues are never empty, and the messages that have another queue, an eta or a priority."""

    sends_ahead = False
    keeps_order = True
    put_back_delay = 0.0

    def __init__(self):
        self.special = {}
        self.asked = []

    def queues_of(self, job):
        return frozenset(["work"])

    def place_of(self, job, tag, row, cell=None):
        self.asked.append((job.job_id, tag, row))
        return self.special.get((job.job_id, row), Place("work", in_order=True))

    def place_of_callback(self, job, latch, cell):
        return job.latches[latch].place

    def message_count(self, queue):
        return 7


class CountingStore(WrappedStore):
    """A store that counts how often the cells of a job, and their counts, are read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.reads = {True: [], False: []}

    def column_summaries(self, ref, tag=None, *, indexes=False):
        self.reads[indexes].append(ref.key.job_id)
        return super().column_summaries(ref, tag, indexes=indexes)


class Scene:
    """Jobs whose messages go to one queue, and the sweeps that look for lost ones."""

    def __init__(self, store, clock):
        self.store = CountingStore(store)
        self.queues = BusyQueues()
        self.grids = {}
        self.gone_at = 0
        self._clock = clock

    def submit(self, name, rows=1, tags=("a",), **others):
        self.grids[name] = Grid.submitted(self.store, rows, tags, job_id=name, **others)
        return self.grids[name]

    def begin(self, name, row=0, tag="a"):
        self.grids[name].begin(tag, row, owner="w", delivery=self.grids[name].cell(tag, row).delivery)

    def sweep(self, times=1, unpublished=()):
        """Sweep some times, with pauses before. Return the rows that the last sweep found to be lost, by job."""
        for _ in range(times):
            self._clock.advance(SWEEP)
            lease, now = round(LEASE * 1e6), self.store.now()
            at_work = AtWork(self.store, lease, now, self.gone_at, sends_ahead=False)
            for attempt in self.store.list_open_attempts():
                at_work.add(attempt)
            lost = LostMessages(self.store, self.queues, lease, now, at_work)
            for grid in self.grids.values():
                lost.look_at_callbacks(grid.job)
                lost.look_at(grid.job, self.store.get_outbox(grid.ref), IndexSet(unpublished))
            for each in lost.cells_to_read():
                lost.look_at_cell(each)
            found = lost.finish()
        return {each.ref.key.job_id: str(IndexSet(row for row in each.rows if row >= 0)) for each in found}

    def sweeps_until_lost(self, most=20):
        """Sweep until something is lost. Return the number of sweeps and what is lost; None if nothing is."""
        for number in range(1, most + 1):
            lost = self.sweep()
            if lost:
                return number, lost
        return None


@pytest.fixture
def scene(store, clock):
    return Scene(store, clock)


def overtake(scene, name="later"):
    """Begin a message that was published two leases after all others."""
    scene.sweep(6)
    scene.submit(name)
    scene.begin(name)


def test_a_message_is_lost_if_one_has_begun_that_was_published_two_leases_later(scene):
    scene.submit("lost", 3)
    scene.begin("lost", 1)
    overtake(scene)
    assert scene.sweep(1) == {}, "what a sweep finds out is used by the next one"
    assert scene.sweep(1) == {}
    assert scene.sweep(2) == {"lost": "0,2"}, "one lease after that"


def test_a_message_is_not_lost_if_only_earlier_ones_and_those_published_within_two_leases_have_begun(scene):
    scene.submit("earlier")
    scene.submit("waits", 3)
    scene.sweep(3)
    scene.submit("not much later")
    for name in ("earlier", "not much later"):
        scene.begin(name)
    assert scene.sweeps_until_lost() is None
    assert scene.store.reads[True] == []


def test_the_reason_names_the_later_messages(scene, store):
    scene.submit("lost")
    overtake(scene)
    scene.sweep(3)
    record = Notes.from_json(store.get_worker(RECORD).body)
    assert [*record.suspects.rows] == ["work"]
    assert record.order.passed["work"] == scene.grids["later"].job.created_at


@pytest.mark.parametrize(
    "place",
    [None, Place("other", in_order=True), Place("work"), Place("work", 2**60, in_order=False)],
    ids=["unknown", "another queue", "a priority", "an eta"],
)
@pytest.mark.parametrize("which", ["lost", "later"])
def test_a_message_proves_nothing_about_one_of_another_queue_or_kind(scene, which, place):
    scene.queues.special = {(which, 0): place}
    scene.submit("lost")
    overtake(scene)
    assert scene.sweeps_until_lost() is None


def test_a_retry_that_has_begun_proves_nothing(scene):
    """It may have an eta of its own."""
    scene.submit("lost")
    scene.sweep(6)
    grid = scene.submit("later")
    grid.begin("a", 0, owner="w", delivery=Delivery(0, 0, 1))
    assert scene.sweeps_until_lost() is None


def test_rows_with_a_priority_are_looked_at_once_in_a_lease(scene):
    rows = 50
    scene.queues.special = {("waits", row): Place("work") for row in range(rows)}
    scene.submit("waits", rows)
    overtake(scene)
    scene.sweep(2)
    scene.queues.asked.clear()
    scene.store.reads[True].clear()
    sweeps = 8
    assert scene.sweeps_until_lost(sweeps) is None
    leases_passed = sweeps * SWEEP / LEASE
    assert len(scene.store.reads[True]) <= leases_passed
    assert len([each for each in scene.queues.asked if each[0] == "waits"]) <= rows * leases_passed


def test_rows_with_a_priority_are_not_looked_at_again_for_the_sake_of_a_lost_one(scene):
    rows = 50
    scene.queues.special = {("lost", row): Place("work") for row in range(1, rows)}
    scene.submit("lost", rows)
    overtake(scene)
    assert scene.sweep(2) == {}
    scene.queues.asked.clear()
    assert scene.sweep() == {}
    assert {each for each in scene.queues.asked if each[0] == "lost"} == {("lost", "a", 0)}
    assert scene.sweep() == {"lost": "0"}


@pytest.mark.parametrize("waiting", [4, 40])
def test_a_lost_message_is_found_while_many_others_wait_that_were_published_again(scene, monkeypatch, waiting):
    monkeypatch.setattr(lost_messages, "MOST_CELLS", 3)
    grid = scene.submit("waits", waiting)
    scene.submit("lost")
    scene.sweep(6)
    scene.submit("later")
    for row in range(waiting):
        scene.store.write(grid.ref, Write.sent_back("a", row, "why", attempt=0))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=waiting, lease=LEASE))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=0))
    scene.begin("later")
    assert scene.sweeps_until_lost(25)[1] == {"lost": "0"}


def test_nothing_is_noted_about_queues_that_do_not_keep_the_order(scene, store):
    scene.queues.keeps_order = False
    scene.submit("lost")
    overtake(scene)
    assert scene.sweeps_until_lost() is None
    assert store.get_worker(RECORD) is None
    assert scene.queues.asked == []


def test_a_message_that_a_worker_has_received_is_not_lost(scene, store):
    grid = scene.submit("lost", 2)
    leases.renew(store, "w", Report(received=[Received(grid.ref, "a", 0)]), 100 * LEASE)
    overtake(scene)
    assert scene.sweeps_until_lost()[1] == {"lost": "1"}


def test_a_message_that_is_received_within_the_last_lease_is_not_lost(scene, store):
    grid = scene.submit("lost", 2)
    overtake(scene)
    assert scene.sweep(3) == {}
    leases.renew(store, "w", Report(received=[Received(grid.ref, "a", 0)]), 100 * LEASE)
    assert scene.sweep() == {"lost": "1"}


def test_a_lost_message_of_a_job_with_a_window_is_found_when_the_job_has_no_more_rows(scene):
    """Until then its counts do not show whether an earlier or a later row has not begun."""
    grid = scene.submit("lost", 20, published=4, flow=Flow(4))
    for row in range(1, 20):
        if row >= 4:
            grid.store.claim(grid.ref, ClaimRequest(publisher="w/1.1", limit=1))
        scene.begin("lost", row)
        assert scene.sweep() == {}
        grid.end("a", row)
    order = Notes.from_json(grid.store.get_worker(RECORD).body).order
    assert len(order.snapshots) <= MOST_SNAPSHOTS
    assert order.passed["work"] > grid.job.created_at + 12 * SWEEP * 1e6, "its rows prove something about other jobs"
    overtake(scene)
    assert scene.sweeps_until_lost()[1] == {"lost": "0"}


def test_the_rows_of_a_job_that_is_still_published_show_that_a_message_of_another_one_is_lost(scene):
    scene.submit("lost")
    grid = scene.submit("later", 40, published=4, flow=Flow(4))
    for row in range(15):
        scene.begin("later", row)
        if scene.sweep():
            break
        grid.end("a", row)
        grid.store.claim(grid.ref, ClaimRequest(publisher="w/1.1", limit=1))
    assert row < 14


def test_the_cells_of_healthy_jobs_are_not_read(scene):
    for name in ("one", "two"):
        scene.submit(name, 3)
        for row in range(3):
            scene.begin(name, row)
    for number in range(10):
        scene.submit(f"later {number}")
        scene.begin(f"later {number}")
        assert scene.sweep(2) == {}
    assert scene.store.reads[True] == []
    assert len(scene.store.reads[False]) < 60


@pytest.mark.parametrize("is_dead", [True, False])
@pytest.mark.parametrize("delay", [0.0, 4 * LEASE])
def test_only_messages_that_were_published_after_a_put_back_prove_something(scene, is_dead, delay):
    """Messages that the broker has put back are the next ones of their queue, and all workers may be busy."""
    scene.queues.put_back_delay = delay
    scene.submit("waits")
    overtake(scene)
    scene.sweep(3)
    ended_at = scene.store.now()
    if is_dead:
        scene.gone_at = ended_at
    else:
        put_back.note(scene.store)
    assert scene.sweeps_until_lost(4) is None
    number = 0
    while (lost := scene.sweep()) == {}:
        number += 1
        scene.submit(f"{number}")
        scene.begin(f"{number}")
    assert lost == {"waits": "0"}, "it was not put back"
    assert (scene.store.now() - ended_at) / 1e6 >= max(delay, LEASE) + LEASE


def test_a_worker_that_stops_between_two_sweeps_is_noticed(scene, store):
    scene.submit("waits")
    overtake(scene)
    scene.sweep(3)
    leases.renew(store, "v", Report(), LEASE)
    put_back.drop_worker(store, "v")
    assert scene.sweeps_until_lost() is None


def test_a_worker_that_comes_changes_nothing(scene, store):
    scene.submit("lost")
    overtake(scene)
    leases.renew(store, "v", Report(), 100 * LEASE)
    assert scene.sweeps_until_lost()[1] == {"lost": "0"}


def test_a_row_that_was_published_again_is_compared_with_messages_that_were_published_after_that(scene):
    grid = scene.submit("again", 2)
    scene.sweep(6)
    scene.submit("later")
    scene.store.write(grid.ref, Write.sent_back("a", 0, "why", attempt=0))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=1))
    scene.begin("later")
    assert scene.sweeps_until_lost(8)[1] == {"again": "1"}
    scene.begin("again", 1)
    assert scene.sweeps_until_lost(8) is None
    scene.submit("last")
    scene.begin("last")
    assert scene.sweeps_until_lost()[1] == {"again": "0"}


@pytest.mark.parametrize("how", ["returned", "unpublished"])
def test_a_job_with_rows_that_are_not_published_is_compared_later(scene, how):
    """They may be published at any time, and then wait behind others."""
    grid = scene.submit("waits", 2)
    if how == "returned":
        grid.update(lambda job: replace(job, flow=Flow(paused=True)))
        scene.store.write(grid.ref, Write.sent_back("a", 0, "why", attempt=0))
    overtake(scene)
    scene.sweep(1, unpublished=() if how == "returned" else [0])
    grid.update(lambda job: replace(job, flow=Flow()))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=2))
    assert scene.sweeps_until_lost(8)[1] == {"waits": "1"}
    scene.begin("waits", 1)
    assert scene.sweeps_until_lost(8) is None
    scene.submit("last")
    scene.begin("last")
    assert scene.sweeps_until_lost()[1] == {"waits": "0"}


def test_a_claim_is_compared_only_after_its_publisher_has_published_it(scene):
    """The broker may not answer for a long time."""
    grid = scene.submit("waits", 2, published=1, flow=Flow(2))
    scene.begin("waits", 0)
    scene.store.claim(grid.ref, ClaimRequest(publisher="w/1.1", limit=1, lease=100 * LEASE))
    overtake(scene)
    assert scene.sweeps_until_lost(8) is None
    scene.store.claim(grid.ref, ClaimRequest(publisher="w/1.1", limit=0))
    assert scene.sweeps_until_lost(8) is None
    scene.submit("last")
    scene.begin("last")
    assert scene.sweeps_until_lost()[1] == {"waits": "1"}


def test_a_claim_of_an_end_counts_as_published_two_leases_later(scene):
    """It stays until the process claims again."""
    grid = scene.submit("lost", 2, published=1, flow=Flow(2))
    scene.begin("lost", 0)
    scene.store.claim(grid.ref, ClaimRequest(publisher="w/1.1", limit=1))
    scene.sweep(3)
    for number in range(4):
        scene.submit(f"later {number}")
        scene.begin(f"later {number}")
        scene.sweep()
    assert scene.sweeps_until_lost(8) is None
    scene.submit("last")
    scene.begin("last")
    assert scene.sweeps_until_lost()[1] == {"lost": "1"}


def test_rows_are_compared_anew_that_were_given_back_and_claimed_again_between_two_sweeps(scene):
    grid = scene.submit("waits", 2, published=0, flow=Flow())
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=2, lease=100 * LEASE))
    scene.sweep(6)
    scene.submit("later")
    given_back = Returned(waiting=IndexSet([0, 1]))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p", limit=0, returned=given_back))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p2", limit=2, lease=LEASE))
    scene.store.claim(grid.ref, ClaimRequest(publisher="p2", limit=0))
    scene.begin("later")
    assert scene.sweeps_until_lost() is None


def test_the_message_of_a_later_stage_is_lost_if_its_job_has_been_idle_longer(scene):
    grid = scene.submit("lost", 2, ("a", "b"))
    for row in range(2):
        grid.run("a", row)
    scene.begin("lost", 1, tag="b")
    overtake(scene)
    assert scene.sweeps_until_lost(8) is None, "the last activity of a job is known to a minute only"
    scene.sweep(6)
    scene.submit("last")
    scene.begin("last")
    assert scene.sweeps_until_lost()[1] == {"lost": "0"}


def test_the_message_of_a_later_stage_may_have_been_published_long_after_its_row_was_claimed(scene):
    grid = scene.submit("lost", 2, ("a", "b"))
    scene.sweep(6)
    grid.run("a", 0)
    scene.submit("later")
    scene.begin("later")
    assert scene.sweeps_until_lost() == (4, {"lost": "1"}), "row 0 waits for its second stage"


def test_a_retry_is_lost_if_its_job_has_been_idle_longer(scene):
    grid = scene.submit("lost", 2)
    attempt = grid.begin("a", 0, owner="w").cell.attempt
    scene.store.write(grid.ref, Write.returned("a", 0, "retry", Delivery(0, 0, 1), attempt=attempt))
    scene.begin("lost", 1)
    scene.sweep(6)
    overtake(scene)
    assert scene.sweeps_until_lost()[1] == {"lost": "0"}


def test_a_callback_is_lost_if_one_has_begun_that_was_published_two_leases_later(scene):
    grid = scene.submit("lost", 1, success="call me")
    grid.run("a", 0)
    publish_due(scene.store, grid.ref, ["success"], lambda *_: Place("work", in_order=True))
    overtake(scene)
    assert scene.sweeps_until_lost() == (4, {"lost": ""})
    grid.run("success", CALLBACK_ROW)
    scene.sweep()
    assert not grid.job.due


UNREADABLE = [
    "x",
    "[]",
    '{"since":{},"rows":[],"order":null}',
    '{"since":{},"rows":[]}',
    '{"since":{"work":1},"rows":[["work","i","a",false,"0","new"]],"order":{"passed":{},"snapshots":[]}}',
    '{"since":{"work":1},"rows":[["work","i","a",false,"many"]],"order":{"passed":{},"snapshots":[]}}',
    '{"since":{},"rows":[],"order":{"passed":{"work":null},"snapshots":[]}}',
    '{"since":{},"rows":[],"order":{"passed":{},"snapshots":[[1,2,{},{},"new"]]}}',
    '{"since":{},"rows":[],"order":{"passed":{},"snapshots":[[1,2,{},["new"]]]}}',
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_notes_that_cannot_be_read_are_no_notes(scene, store, body):
    scene.submit("lost")
    store.put_worker(RECORD, body, 0)
    assert Notes.from_json(body) == Notes()
    assert scene.sweep() == {}
    overtake(scene)
    assert scene.sweeps_until_lost()[1] == {"lost": "0"}


def test_notes_contain_what_was_noted(scene, store):
    grid = scene.submit("lost", 3)
    scene.store.write(grid.ref, Write.sent_back("a", 1, "why", attempt=0))
    overtake(scene)
    scene.sweep(3)
    notes = Notes.from_json(store.get_worker(RECORD).body)
    assert [str(rows) for rows in notes.suspects.rows["work"].values()] == ["0,2"]
    assert str(*notes.order.snapshots[0].unpublished.values()) == "1"
    assert Notes.from_json(notes.to_json()) == notes


def test_the_size_of_the_notes_is_limited():
    rows = IndexSet(range(0, 2_000, 2))
    suspects, names = Suspects(), [f"queue {number}" for number in range(2 * MOST_QUEUES)]
    for number, name in enumerate(names):
        suspects.since[name] = number
        suspects.add(name, Stage("i", "a"), rows)
    notes = Notes.from_json(Notes(suspects).to_json())
    assert len(notes.to_json()) < 300_000
    assert 10 < len(notes.suspects.rows) == len(notes.suspects.since)
    passed = Overtaken(Order(), 1, 1, 0)
    for number, name in enumerate(names):
        passed.note_begun(name, number)
    assert [*passed.next(1).passed] == names[-MOST_QUEUES:]


def test_a_snapshot_leaves_out_a_job_with_many_gaps(scene, store):
    grid = scene.submit("lost", 100)
    scene.submit("other")
    for row in range(0, 100, 2):
        scene.store.write(grid.ref, Write.sent_back("a", row, "why", attempt=0))
    scene.sweep()
    (snapshot,) = Notes.from_json(store.get_worker(RECORD).body).order.snapshots
    assert [*snapshot.claimed] == [scene.grids["other"].ref.incarnation]


def test_notes_from_the_future_are_not_used(scene, clock):
    """The store's clock was set back."""
    scene.submit("first")
    scene.sweep(6)
    scene.submit("later")
    scene.begin("later")
    scene.sweep(2)
    for name in ("first", "later"):
        scene.grids.pop(name)
    clock.advance(-10 * LEASE)
    scene.submit("waits")
    assert scene.sweeps_until_lost() is None


def test_what_was_found_out_more_than_a_lease_ago_is_not_used(scene, clock):
    scene.submit("lost")
    overtake(scene)
    scene.sweep()
    clock.advance(LEASE)
    assert scene.sweeps_until_lost() is None


class FullStore(WrappedStore):
    """A store that has no room for the notes of sweeps."""

    def put_worker(self, worker_id, body, lease):
        if worker_id == RECORD:
            raise StoreError("no room")
        super().put_worker(worker_id, body, lease)


def test_a_sweep_goes_on_if_its_notes_cannot_be_written(store, clock, caplog):
    full = FullStore(store)
    actions = RecordedActions(full)
    actions.empty_queue = "work"
    Grid.submitted(full, 1)
    leases.renew(full, "dead", Report(), LEASE)
    clock.advance(LEASE)
    Sweep(full, actions, lease=LEASE, max_lost=3).run()
    assert store.get_worker("dead") is None
    assert "cannot write the notes" in caplog.text
