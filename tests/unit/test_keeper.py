"""What a worker says of itself, and when its sweep dares to declare others dead."""

import json
import logging
import sqlite3
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_statemanager import Status, StoreError, StoreUnavailable, leases
from celery_statemanager.integration import requests
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.worker import lease as lease_module
from celery_statemanager.integration.worker import sweeping
from celery_statemanager.integration.worker.lease import Lease
from celery_statemanager.integration.worker.periodic import Periodic
from celery_statemanager.integration.worker.sweeping import keep_sweeping
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import PATIENCE

pytestmark = pytest.mark.usefixtures("holds_nothing")

LEASE = 0.6
LONGEST = "\N{SNOWMAN}" * 200
"""The tag that takes the most bytes."""


class Request:
    """A message of a tracked task as a worker holds it: received, and not begun."""

    time_start = None
    acknowledged = False

    def __init__(self, binding, retries=0, on_lost="mark", message=None):
        self.id = binding.celery_task_id
        self.request_dict = {HEADER: binding.to_header(), "retries": retries}
        self.task = SimpleNamespace(on_lost=on_lost)
        self.message = message
        self.delivery_info = {}
        requests.remember(self)


@pytest.fixture
def tracker():
    app = Celery("kept", broker="memory://", set_as_current=False)
    settings = Settings(lease=LEASE, sweep_interval=0.02)
    return SimpleNamespace(app=app, settings=settings, store=FaultyStore(open_store("memory://")))


@pytest.fixture
def patient(tracker):
    """One whose next renewal is far away."""
    tracker.settings = Settings(lease=3_600.0, sweep_interval=0.02)
    return tracker


def with_dead_worker(store):
    """Give a job with a cell whose worker's lease has run out."""
    grid = Grid.create(store, 1, ("a",))
    grid.begin("a", 0, owner="dead")
    store.put_worker("dead", Report().to_json(), 0)
    return grid


@pytest.fixture
def dead(tracker):
    return with_dead_worker(tracker.store)


def lost_at(tracker, grid):
    """Sweep until the cell is LOST; give when it was seen."""
    sweeping = keep_sweeping(tracker, "me")
    with grid.manager().subscribe("a") as events:
        while events.get(PATIENCE).state.status != Status.LOST:
            pass
    seen = time.monotonic()
    sweeping.stop()
    return seen


def test_who_has_just_started_to_sweep_waits_for_two_renewals_of_the_others(tracker, dead):
    began = time.monotonic()
    assert lost_at(tracker, dead) >= began + 2 / 3 * LEASE


def test_who_may_not_sweep_yet_leaves_the_turn_to_others(patient):
    asked = threading.Semaphore(0)
    patient.store.at("drop_worker", lambda _: asked.release(), after=True, times=3)
    sweeping = keep_sweeping(patient, "me")
    assert all(asked.acquire(timeout=PATIENCE) for _ in range(3))
    sweeping.stop()
    assert list(patient.store.list_workers()) == []
    assert leases.try_acquire(patient.store, "another", 30)


def test_nobody_is_declared_dead_for_one_lease_after_the_store_has_failed(tracker, dead):
    failures = []

    def fail(_):
        failures.append(time.monotonic())
        raise StoreUnavailable("down")

    tracker.store.at("list_workers", fail, times=3)
    assert lost_at(tracker, dead) >= failures[-1] + LEASE


def test_nobody_is_declared_dead_for_one_lease_after_a_store_that_took_no_writes(tracker, tmp_path):
    """It answers reads, and what waits for a write goes on when it can: nothing fails."""
    with open_store(f"sqlite:///{tmp_path}/states.db", timeout=PATIENCE) as locked:
        tracker.store = FaultyStore(locked)
        grid = with_dead_worker(locked)
        with closing(sqlite3.connect(tmp_path / "states.db", isolation_level=None, check_same_thread=False)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            released = []
            release = threading.Timer(LEASE, lambda: (released.append(time.monotonic()), lock.execute("ROLLBACK")))
            tracker.store.at("drop_worker", lambda _: release.start())
            lost = lost_at(tracker, grid)
            release.join()
        assert lost >= released[0] + LEASE


def test_writes_are_tried_within_half_a_lease_however_seldom_a_turn_comes(tracker):
    tracker.settings = Settings(lease=LEASE, sweep_interval=60.0)
    took, tried = threading.Event(), threading.Event()
    tracker.store.at("try_acquire", lambda _: (tracker.store.at("drop_worker", lambda _: tried.set()), took.set()))
    sweeping = keep_sweeping(tracker, "me")
    assert took.wait(PATIENCE)
    assert tried.wait(PATIENCE)
    sweeping.stop()


def test_who_stood_still_with_its_machine_starts_anew(monkeypatch):
    trust = sweeping._Trust(0.0, 1.0)
    assert trust.holds()
    trust._lease = LEASE
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1.5)
    assert not trust.holds()


def test_who_stood_still_with_its_machine_after_the_store_had_failed_waits_no_less(monkeypatch):
    trust = sweeping._Trust(LEASE, 1.0)
    trust.lose()
    until = trust._since
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LEASE + 1.5)
    trust.holds()
    assert trust._since >= until


class Worker:
    """A worker's lease, by a clock that stands still, and what the worker does."""

    def __init__(self, tracker, monkeypatch):
        self.grid = Grid.create(tracker.store, 1_000, ("a",))
        self.running, self.held = [], []
        self.now = 0.0
        self._store = tracker.store
        self._lease = Lease(tracker, "w", clock=lambda: self.now)
        monkeypatch.setattr(requests, "running", lambda: [*map(self._binding, self.running)])

    def receive(self, row, retries=0):
        self.held.append(Request(self._binding(row), retries))

    def look(self, seconds=1.0):
        """Let time pass, and look; give the rows that the record then lists as (running, previous, received)."""
        self.now += seconds
        self._lease.renew_where_needed()
        report = self.report
        return *map(self._rows, (report.running, report.previous)), [row.task_index for row in report.received]

    def writes(self, looks):
        """Look so often; give when the record was written."""
        written = []
        for _ in range(looks):
            before = self.record.renewed_at
            self.look()
            if self.record.renewed_at != before:
                written.append(self.now)
        return written

    @property
    def report(self):
        return Report.from_record(self.record)

    @property
    def record(self):
        return leases.workers(self._store)["w"]

    def _binding(self, row):
        return Binding(self.grid.ref, row, "a")

    @staticmethod
    def _rows(names):
        return sorted(int(name.split(".")[1]) for name in names)


@pytest.fixture
def worker(tracker, monkeypatch):
    """One with a lease of 30 s: renewed every 10 s, looked at every second."""
    tracker.settings = Settings(lease=30.0)
    return Worker(tracker, monkeypatch)


def test_what_ran_at_a_renewal_that_failed_is_not_forgotten(worker, tracker):
    worker.running = [0]
    assert worker.look()[:2] == ([0], [])
    with tracker.store.away():
        for worker.running in ([1], []):
            with pytest.raises(StoreUnavailable):
                worker.look(10.0)
    assert worker.look(10.0)[:2] == ([], [0, 1])
    assert worker.look(10.0)[:2] == ([], [])


def test_a_record_that_nothing_is_new_to_is_written_at_each_renewal(worker):
    worker.running = [0]
    worker.look()
    assert worker.writes(30) == [11.0, 21.0, 31.0]


def test_a_message_that_is_held_and_not_listed_renews_the_record_before_its_time(worker):
    assert worker.look()[2] == []
    worker.receive(0)
    assert worker.look()[2] == []
    assert worker.look()[2] == [0]
    assert worker.look()[2] == [0]
    written = worker.record
    worker.held.clear()
    worker.look()
    assert worker.record == written
    worker.receive(0, retries=1)
    worker.look()
    worker.look()
    assert worker.report.received[0].delivery.retries == 1


def test_a_renewal_before_its_time_puts_off_the_next(worker):
    worker.look()
    assert worker.writes(5) == []
    worker.receive(0)
    assert worker.writes(25) == [8.0, 18.0, 28.0]


def test_messages_that_are_begun_soon_cost_no_renewal(worker):
    """At most one write a renewal, however many tasks come and go."""
    worker.look()
    first = worker.record
    for row in range(100):
        worker.receive(row)
        worker.look(0.05)
        worker.held.clear()
    assert worker.record == first


def test_messages_that_keep_coming_and_waiting_cost_ten_renewals_a_lease(worker):
    """Each is listed within four looks, or has begun."""
    worker.look()
    written = []
    for row in range(60):
        worker.receive(row)
        del worker.held[:-10]
        written += worker.writes(1)
        listed = {each.task_index for each in worker.report.received}
        assert {*range(max(0, row - 9), row - 3)} <= listed
    assert 18 <= len(written) <= 20


def test_who_has_ended_is_listed_for_a_renewal_whatever_is_new(worker):
    """The store may not have its end yet."""
    worker.running = [0]
    for _ in range(10):
        worker.look()
    worker.running = []
    ended = worker.now
    while worker.now < ended + 10:
        worker.receive(int(worker.now))
        running, previous, _ = worker.look()
        assert 0 in running + previous
    for _ in range(2):
        worker.look(10.0)
    assert worker.report.previous == []


def lines_of(caplog, actions):
    """Give what is logged while one thing after the other is done, or raised."""
    left, done = iter(actions), threading.Event()

    def act():
        outcome = next(left, None)
        if outcome is None:
            done.set()
        elif isinstance(outcome, Exception):
            raise outcome

    with caplog.at_level(logging.WARNING, logger="celery_statemanager"):
        renewing = Periodic("lease", act, lambda: 0.001).start()
        assert done.wait(PATIENCE)
        renewing.stop()
    return [(each.getMessage(), bool(each.exc_info)) for each in caplog.records]


@pytest.mark.parametrize("kind", [StoreError, StoreUnavailable])
def test_trouble_that_lasts_is_told_once_in_one_line_and_so_is_its_end(caplog, kind):
    lines = lines_of(caplog, [kind("no credentials: run this")] * 5 + ["fine"])
    assert lines == [
        ("lease failed; the next time may do: no credentials: run this", False),
        ("lease works again", False),
    ]


def test_other_trouble_is_told_too_and_a_bug_with_its_traceback(caplog):
    lines = lines_of(caplog, [StoreError("first"), StoreError("second"), KeyError("bug")])
    assert [each.rpartition(": ")[2] for each, _ in lines[:2]] == ["first", "second"]
    assert lines[2] == ("lease failed; the next time may do", True)


def test_a_record_lists_as_many_messages_as_every_store_takes(patient, monkeypatch):
    """A worker may hold any number of messages for a later time; a record that no store takes would be its end."""
    grid = Grid.create(patient.store, 1_000, ("a",))
    message = SimpleNamespace(
        content_type="application/json",
        content_encoding="utf-8",
        body='"' * 10_000,
        properties={},
        delivery_info={},
        headers={"task": "t"},
    )
    held = [Request(Binding(grid.ref, row, "a"), on_lost="requeue", message=message) for row in range(1_000)]
    lease = Lease(patient, "w")
    lease.renew()
    record = leases.workers(patient.store)["w"]
    rows = [row.task_index for row in Report.from_record(record).received]
    assert rows == [*range(len(rows))]
    assert len(rows) < len(held)
    assert 700_000 < len(record.body.encode()) < 1_000_000
    lease.renew_where_needed()
    assert leases.workers(patient.store)["w"] == record


def test_a_record_with_more_cells_than_there_is_room_for_is_one_that_every_store_takes(patient, monkeypatch, caplog):
    """A store that is back after a while finds any number of cells waiting: their worker must be heard all the same."""
    grid = Grid.create(patient.store, 10_000, (LONGEST,))
    names = [cell_name(grid.ref, LONGEST, row) for row in range(10_000)]
    held = [Request(Binding(grid.ref, row, LONGEST)) for row in range(10_000)]
    waiting = []
    monkeypatch.setattr(lease_module, "backlog", SimpleNamespace(cells=waiting.copy))
    monkeypatch.setattr(requests, "running", lambda: [Binding(grid.ref, 0, LONGEST)])
    lease = Lease(patient, "w")

    def renewed():
        lease.renew()
        record = leases.workers(patient.store)["w"]
        assert len(record.body.encode()) <= leases.MOST_BYTES
        return Report.from_record(record)

    with caplog.at_level(logging.WARNING, logger="celery_statemanager"):
        assert renewed().cut == ["received"]
        waiting.extend(names)
        for _ in range(3):
            report = renewed()
            assert report.cut == ["pending", "running", "received"]
            assert 500 < len(report.pending) < 10_000
            assert 300 < len(report.received) < 10_000
            assert all(map(report.lists, names))
        waiting.clear()
        held.clear()
        assert renewed().cut == []
    text = "the worker's record has no room for all"
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        f"{text} messages that it has received (1 run, 0 wait to be written, 10,000 are received)",
        f"{text} cells that it is at (1 run, 10,000 wait to be written, 10,000 are received)",
    ]


def test_what_is_received_is_spelt_once_and_only_while_there_is_room():
    """What waits is spelt at each renewal: ten thousand rows with their messages take a while."""
    spelt = []

    class Row(leases.Received):
        def to_list(self):
            spelt.append(self.task_index)
            return super().to_list()

    ref = Grid.create(open_store("memory://"), 1).ref
    report = Report(received=(Row(ref, "a", row, "m" * 60_000) for row in range(100)))
    listed = json.loads(report.to_json())["received"]
    assert spelt == [*range(len(listed) + 1)]
    assert len(listed) == 13
