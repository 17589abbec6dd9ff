"""The contents of a worker's record, and when a sweep treats an expired lease as a lost worker."""

import json
import logging
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import state as worker_state

from celery_statemanager import Status, StoreError, StoreUnavailable, leases, put_back
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.outbox.blocks import BlockCache, BlockWriter
from celery_statemanager.integration.outbox.envelope import to_json
from celery_statemanager.integration.pending_files import PendingFiles
from celery_statemanager.integration.periodic import Periodic
from celery_statemanager.integration.requests import HeldMessages
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.worker.lease import Lease
from celery_statemanager.integration.worker.sweeping import LeaseTrust, keep_sweeping, sweep
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.metrics import Metrics
from celery_statemanager.records import ClaimRequest, Flow, new_job
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import PATIENCE, workers

LEASE = 0.6
LONGEST = "\N{SNOWMAN}" * 200
"""A tag of the greatest length in bytes."""


class Request:
    """A message of a tracked task that a worker has received and not begun."""

    time_start = None
    acknowledged = False
    worker_pid = None

    def __init__(self, binding, retries=0):
        self.id = binding.celery_task_id
        self.request_dict = {HEADER: binding.to_header(), "retries": retries}
        self.task = SimpleNamespace(name="task", on_lost="mark")
        self.delivery_info = {}

    def run(self):
        self.time_start = 1.0
        worker_state.active_requests.add(self)
        return self


@pytest.fixture
def tracker():
    app = Celery("leased", broker="memory://", set_as_current=False)
    return SimpleNamespace(
        app=app,
        blocks=BlockCache(),
        settings=Settings(lease=LEASE, sweep_interval=0.02),
        store=FaultyStore(open_store("memory://")),
        backlog=Backlog(first_delay=0.01, longest_delay=0.01),
        pending_files=PendingFiles(app.main),
        moving_files=PendingFiles(app.main, "moving"),
        held_messages=HeldMessages(),
        metrics=Metrics(),
    )


@pytest.fixture
def patient(tracker):
    """A tracker with a long lease, so that no renewal is due during the test."""
    tracker.settings = Settings(lease=3_600.0, sweep_interval=0.02)
    return tracker


def with_dead_worker(store):
    """Create a job with a cell whose worker's lease has expired."""
    grid = Grid.create(store, 1, ("a",))
    grid.begin("a", 0, owner="dead")
    store.put_worker("dead", Report().to_json(), 0)
    return grid


@pytest.fixture
def dead(tracker):
    return with_dead_worker(tracker.store)


def lost_at(tracker, grid):
    """Sweep until the cell is LOST; return the time at which it was."""
    sweeping = keep_sweeping(tracker, "me")
    with grid.manager().subscribe("a") as events:
        while events.get(PATIENCE).state.status != Status.LOST:
            pass
    seen = time.monotonic()
    sweeping.stop()
    return seen


def test_new_sweeper_waits_for_two_renewals_of_the_others(tracker, dead):
    began = time.monotonic()
    assert lost_at(tracker, dead) >= began + 2 / 3 * LEASE


def test_sweeper_without_trust_does_not_acquire_the_sweep(patient):
    asked = threading.Semaphore(0)
    patient.store.at("drop_worker", lambda _: asked.release(), after=True, times=3)
    sweeping = keep_sweeping(patient, "me")
    assert all(asked.acquire(timeout=PATIENCE) for _ in range(3))
    sweeping.stop()
    assert list(patient.store.list_workers()) == []
    assert leases.try_acquire(patient.store, "another", 30)


def test_no_worker_is_lost_for_one_lease_after_the_store_failed(tracker, dead):
    failures = []

    def fail(_):
        failures.append(time.monotonic())
        raise StoreUnavailable("down")

    tracker.store.at("list_workers", fail, times=3)
    assert lost_at(tracker, dead) >= failures[-1] + LEASE


def test_no_worker_counts_as_dead_for_one_lease_after_the_worker_records_disappeared(tracker):
    swept = threading.Event()
    tracker.store.at("list_workers", lambda _: swept.set(), after=True)
    sweeping = keep_sweeping(tracker, "me")
    assert swept.wait(PATIENCE)
    disappeared = time.monotonic()
    tracker.store.drop_worker(leases.SWEEPER)
    grid = with_dead_worker(tracker.store)
    with grid.manager().subscribe("a") as events:
        while events.get(PATIENCE).state.status != Status.LOST:
            pass
    assert time.monotonic() >= disappeared + LEASE
    sweeping.stop()


def test_no_worker_is_lost_for_one_lease_after_the_store_was_locked(tracker, tmp_path):
    """A locked store answers reads and delays writes, so no call fails."""
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


def test_writes_are_tried_within_half_a_lease_at_any_sweep_interval(tracker):
    tracker.settings = Settings(lease=LEASE, sweep_interval=60.0)
    took, tried = threading.Event(), threading.Event()
    tracker.store.at("try_acquire", lambda _: (tracker.store.at("drop_worker", lambda _: tried.set()), took.set()))
    sweeping = keep_sweeping(tracker, "me")
    assert took.wait(PATIENCE)
    assert tried.wait(PATIENCE)
    sweeping.stop()


class Clocks:
    """The clocks of a machine that can be suspended."""

    def __init__(self):
        self.monotonic, self.wall = 1_000.0, 2_000.0

    def advance(self, seconds):
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def trust(clocks):
    """The trust in a lease of 30 s, checked at least every second, of a process that has just started."""
    return LeaseTrust(30.0, 1.0, lambda: clocks.monotonic, lambda: clocks.wall)


def holds_after(trust, clocks, seconds):
    """Check every second; return whether the trust holds at the end only."""
    held = []
    for _ in range(seconds):
        held.append(trust.holds())
        clocks.advance(1.0)
    return not any(held) and trust.holds()


def test_suspended_sweeper_waits_for_two_renewals_again(trust, clocks):
    assert holds_after(trust, clocks, 20)
    clocks.wall += 40.0
    assert holds_after(trust, clocks, 20)


def test_sweeper_suspended_after_the_store_failed_waits_no_less(trust, clocks):
    trust.lose()
    clocks.wall += 40.0
    assert holds_after(trust, clocks, 30)


def with_messages(tracker):
    """Create a job whose messages are stored, and the record of a dead worker."""

    @tracker.app.task(name="stored", shared=False)
    def stored(): ...

    job = replace(new_job("stored", 3, ("a",)), flow=Flow())
    writer = BlockWriter(tracker.store, job.ref)
    for row in range(3):
        header = Binding(job.ref, row, "a").to_header()
        publish = {"routing_key": "stored", "headers": {HEADER: header}}
        writer.add(to_json([{"task": "stored", "body": "[]", "publish": publish}]))
    writer.flush()
    tracker.store.create_job(job)
    tracker.store.put_worker("dead", Report().to_json(), 0)
    return job


def with_lost_message(tracker):
    """Create a job with a message that a dead worker had received."""
    job = with_messages(tracker)
    for limit in (3, 0):
        tracker.store.claim(job.ref, ClaimRequest(publisher="submitter", limit=limit))
    tracker.store.put_worker("dead", Report(received=[leases.Received(job.ref, "a", 0)]).to_json(), 0)


def with_dead_publisher(tracker):
    """Create a job whose publisher died after it had claimed one of the messages."""
    job = with_messages(tracker)
    tracker.store.claim(job.ref, ClaimRequest(publisher="dead/1.1", limit=1))


@pytest.mark.parametrize(
    ("create", "level", "numbers"),
    [
        (lambda tracker: with_dead_worker(tracker.store), "WARNING", (1, 0, 0, 0)),
        (with_lost_message, "WARNING", (0, 1, 0, 1)),
        (with_dead_publisher, "INFO", (0, 0, 0, 3)),
    ],
)
def test_sweep_logs_marked_and_requeued_attempts_as_a_warning(tracker, caplog, create, level, numbers):
    create(tracker)
    name = "celery_statemanager.integration.worker.sweeping"
    with caplog.at_level(logging.INFO, logger=name):
        sweep(tracker)
        sweep(tracker)
    assert [(each.levelname, each.args) for each in caplog.records if each.name == name] == [(level, numbers)]


class Worker:
    """A worker's lease with a clock of the test, and the messages that the worker runs and holds."""

    def __init__(self, tracker):
        self.grid = Grid.create(tracker.store, 1_000, ("a",))
        self.held = []
        self.now = 0.0
        self._running = []
        self._store, self._messages = tracker.store, tracker.held_messages
        self.lease = Lease(tracker, "w", clock=lambda: self.now)

    def receive(self, row, retries=0):
        request = Request(self._binding(row), retries)
        self._messages.add(request)
        self.held.append(request)
        return request

    def run(self, *rows):
        """End all running bodies, and start those of these rows."""
        worker_state.active_requests.difference_update(self._running)
        self._running.clear()
        for row in rows:
            self._running.append(self.receive(row).run())
            self.held.pop()

    def look(self, seconds=1.0):
        """Advance the clock and check; return the rows that the record lists as running, previous and received."""
        self.now += seconds
        self.lease.renew_if_needed()
        report = self.report
        return *map(self._rows, (report.running, report.previous)), [row.task_index for row in report.received]

    def writes(self, looks):
        """Check repeatedly; return the times at which the record was written."""
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
        return workers(self._store)["w"]

    def _binding(self, row):
        return Binding(self.grid.ref, row, "a")

    @staticmethod
    def _rows(names):
        return sorted(int(name.split(".")[1]) for name in names)


@pytest.fixture
def worker(tracker):
    """A worker with a lease of 30 s: renewed every 10 s, checked every second."""
    tracker.settings = Settings(lease=30.0)
    return Worker(tracker)


def test_cell_that_ran_at_a_failed_renewal_is_listed_at_the_next(worker, tracker):
    worker.run(0)
    assert worker.look()[:2] == ([0], [])
    with tracker.store.away():
        for rows in ([1], []):
            worker.run(*rows)
            with pytest.raises(StoreUnavailable):
                worker.look(10.0)
    assert worker.look(10.0)[:2] == ([], [0, 1])
    assert worker.look(10.0)[:2] == ([], [])


def test_unchanged_record_is_written_at_each_renewal(worker):
    worker.run(0)
    worker.look()
    assert worker.writes(30) == [11.0, 21.0, 31.0]


def test_the_end_of_a_connection_is_noted_before_the_next_record_of_the_worker(worker, tracker):
    assert worker.look()[2] == []
    assert put_back.noted_at(tracker.store) == 0
    worker.lease.note_connection_end()
    before = worker.record
    with tracker.store.away(), pytest.raises(StoreUnavailable):
        worker.look()
    assert worker.record == before
    worker.look()
    noted_at = put_back.noted_at(tracker.store)
    assert before.renewed_at < noted_at <= worker.record.renewed_at
    worker.look(10.0)
    assert put_back.noted_at(tracker.store) == noted_at, "it is noted once"


@pytest.mark.parametrize("runs", [[], [0]], ids=["dropped", "kept"])
def test_the_end_of_a_worker_is_noted_before_its_connection_is_closed(worker, tracker, runs):
    worker.run(*runs)
    worker.look()
    renewed_at = worker.record.renewed_at
    worker.lease.release()
    assert put_back.noted_at(tracker.store) > renewed_at
    assert [*workers(tracker.store)] == ["w"] * len(runs)


def test_held_message_that_is_not_listed_renews_the_record_early(worker):
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


def test_early_renewal_postpones_the_next(worker):
    worker.look()
    assert worker.writes(5) == []
    worker.receive(0)
    assert worker.writes(25) == [8.0, 18.0, 28.0]


def test_messages_that_begin_soon_cost_no_renewal(worker):
    """The record is written once in each renewal period, at any rate of tasks."""
    worker.look()
    first = worker.record
    for row in range(100):
        worker.receive(row)
        worker.look(0.05)
        worker.held.clear()
    assert worker.record == first


def test_steady_stream_of_waiting_messages_costs_ten_renewals_a_lease(worker):
    """Each message is listed within four checks, unless it has begun."""
    worker.look()
    written = []
    for row in range(60):
        worker.receive(row)
        del worker.held[:-10]
        written += worker.writes(1)
        listed = {each.task_index for each in worker.report.received}
        assert {*range(max(0, row - 9), row - 3)} <= listed
    assert 18 <= len(written) <= 20


def test_ended_cell_is_listed_for_one_renewal_despite_early_renewals(worker):
    """The last state of such a cell may not be in the store yet."""
    worker.run(0)
    for _ in range(10):
        worker.look()
    worker.run()
    ended = worker.now
    while worker.now < ended + 10:
        worker.receive(int(worker.now))
        running, previous, _ = worker.look()
        assert 0 in running + previous
    for _ in range(2):
        worker.look(10.0)
    assert worker.report.previous == []


def lines_of(caplog, actions):
    """Return the log lines of a periodic action that returns or raises these outcomes, one at each call."""
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
def test_repeated_failure_and_its_end_are_logged_once_in_one_line(caplog, kind):
    lines = lines_of(caplog, [kind("no credentials: run this")] * 5 + ["fine"])
    assert lines == [
        ("lease failed, will retry: no credentials: run this", False),
        ("lease recovered", False),
    ]


def test_different_failures_are_all_logged_and_a_defect_with_its_traceback(caplog):
    lines = lines_of(caplog, [StoreError("first"), StoreError("second"), KeyError("bug")])
    assert [each.rpartition(": ")[2] for each, _ in lines[:2]] == ["first", "second"]
    assert lines[2] == ("lease failed, will retry", True)


def test_record_lists_as_many_messages_as_every_store_accepts(patient):
    """A worker can renew its lease with any number of messages that have an eta."""
    grid = Grid.create(patient.store, 5_000, (LONGEST,))
    held = [Request(Binding(grid.ref, row, LONGEST)) for row in range(5_000)]
    for request in held:
        patient.held_messages.add(request)
    lease = Lease(patient, "w")
    lease.renew()
    record = workers(patient.store)["w"]
    rows = [row.task_index for row in Report.from_record(record).received]
    assert rows == [*range(len(rows))]
    assert len(rows) < len(held)
    assert 700_000 < len(record.body.encode()) < 1_000_000
    lease.renew_if_needed()
    assert workers(patient.store)["w"] == record


def test_record_with_more_cells_than_it_has_room_for_is_accepted_by_every_store(patient, caplog):
    """A worker can renew its lease with any number of waiting cells, for example after an outage."""
    grid = Grid.create(patient.store, 10_000, (LONGEST,))
    names = [cell_name(grid.ref, LONGEST, row) for row in range(10_000)]
    held = [Request(Binding(grid.ref, row, LONGEST)) for row in range(10_000)]
    held.append(Request(Binding(grid.ref, 0, LONGEST)).run())
    for request in held:
        patient.held_messages.add(request)
    lease, up = Lease(patient, "w"), threading.Event()

    def renewed():
        lease.renew()
        record = workers(patient.store)["w"]
        assert len(record.body.encode()) <= leases.MOST_BYTES
        return Report.from_record(record)

    with caplog.at_level(logging.WARNING, logger="celery_statemanager.integration.worker"):
        assert renewed().cut == ["received"]
        for name in names:
            patient.backlog.put((name, "end"), lambda: up.wait(PATIENCE))
        for _ in range(3):
            report = renewed()
            assert report.cut == ["pending", "running", "received"]
            assert 500 < len(report.pending) < 10_000
            assert 300 < len(report.received) < 10_000
            assert all(map(report.lists, names))
        up.set()
        patient.backlog.flush(PATIENCE)
        held.clear()
        assert renewed().cut == []
    text = "the worker's record has no room for all"
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        f"{text} received messages (1 run, 0 wait, 10,000 are received)",
        f"{text} cells that run or wait to be written (1 run, 10,000 wait, 10,000 are received)",
    ]


def test_received_rows_are_encoded_once_and_only_while_there_is_room():
    """Ten thousand rows with messages take long to encode at each renewal."""
    encoded = []

    class Row(leases.Received):
        def to_list(self):
            encoded.append(self.task_index)
            return super().to_list()

    ref = Grid.create(open_store("memory://"), 1).ref
    report = Report(received=(Row(ref, "a", row, "m" * 60_000) for row in range(100)))
    listed = json.loads(report.to_json())["received"]
    assert encoded == [*range(len(listed) + 1)]
    assert len(listed) == 13


ETA = {"retries": 1, "eta": "2040-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("replacements", "is_changed", "headers", "listed"),
    [
        (1, False, {}, True),
        (1, True, {}, False),
        (0, False, {}, False),
        (0, False, ETA, True),
        (0, True, ETA, False),
        (0, False, {**ETA, "eta": None}, False),
    ],
)
def test_a_record_lists_what_nothing_else_keeps_of_a_message(tracker, replacements, is_changed, headers, listed):
    """The message of the last task of a replacement, and the eta of a retry."""
    binding = Binding(Grid.create(tracker.store, 1).ref, 0, "a", replacements=replacements, changed=is_changed)
    info = {"exchange": "", "routing_key": "q"}
    message = SimpleNamespace(
        headers={"task": "last"},
        properties={},
        delivery_info=info,
        body="[]",
        content_type="application/json",
        content_encoding="utf-8",
    )
    request = SimpleNamespace(request_dict=headers, message=message, task=SimpleNamespace(name="last"))
    row = Lease(tracker, "w")._row((request, binding))
    assert (row.message is not None) == listed
