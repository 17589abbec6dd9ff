"""Attempts that a worker has ended itself, and workers whose main loop is blocked."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import state as worker_state
from sweep_actions import RecordedActions

from celery_statemanager import Status, attempts, leases
from celery_statemanager.attempts import Alone
from celery_statemanager.explain import explain
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.pending_files import PendingFiles
from celery_statemanager.integration.requests import ALONE, HeldMessages
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.worker.lease import Lease
from celery_statemanager.integration.worker.main_loop import MainLoop
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.records import Begin, Delivery, Verdict
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import workers

LEASE = 30.0


@pytest.fixture
def grid(store):
    return Grid.submitted(store, 2)


@pytest.fixture
def actions(store):
    return RecordedActions(store)


@pytest.fixture
def sweep(store, actions):
    return lambda max_lost=1: Sweep(store, actions, lease=LEASE, max_lost=max_lost).run()


def begin_again(grid, *, alone=None, max_lost=1, owner="w2"):
    request = Begin(tag="a", task_index=0, owner=owner)
    return attempts.begin(grid.store, grid.ref, request, max_lost=max_lost, alone=alone)


def report_ended(store, grid, clock, **fields):
    """Have the worker record that it has ended the attempt of row 0."""
    clock.advance(1)
    name = cell_name(grid.ref, "a", 0)
    leases.renew(store, "w", Report(previous=[name], ended={name: store.now()}, **fields), LEASE)


def test_ended_attempt_is_superseded_at_once_and_uncounted(store, grid, clock):
    grid.begin("a", 0, owner="w")
    report_ended(store, grid, clock)
    assert begin_again(grid).verdict is Verdict.BEGUN
    assert (grid.cell("a", 0).losses, grid.cell("a", 0).owner) == (0, "w2")


def test_attempt_that_began_after_the_ended_one_is_not_superseded(store, grid, clock):
    name = cell_name(grid.ref, "a", 0)
    report_ended(store, grid, clock)
    clock.advance(1)
    grid.begin("a", 0, owner="w")
    leases.renew(store, "w", Report(running=[name], ended=dict(Report.from_record(workers(store)["w"]).ended)), LEASE)
    assert begin_again(grid).verdict is Verdict.DUPLICATE


@pytest.mark.parametrize(("stopped", "verdict"), [(True, Verdict.BEGUN), (False, Verdict.CLOSED)])
def test_own_attempt_counts_unless_the_worker_ended_it(store, grid, clock, stopped, verdict):
    grid.begin("a", 0, owner="w")
    clock.advance(1_000)
    alone = Alone(0.0, stopped)
    clock.advance(10_000_000)  # far beyond the monotonic time of this machine
    assert begin_again(grid, owner="w", alone=alone).verdict is verdict


@pytest.mark.parametrize("stopping", [True, False])
def test_attempts_of_a_worker_killed_while_it_stops_are_not_counted_as_losses(
    store, grid, clock, sweep, actions, stopping
):
    actions.policies = {0: True}
    for row in (0, 1):
        grid.begin("a", row, owner="w")
    names = [cell_name(grid.ref, "a", row) for row in (0, 1)]
    leases.renew(store, "w", Report(running=names, stopping=stopping), LEASE)
    assert not sweep()
    clock.advance(LEASE + 1)
    report = sweep()
    message = "stopped with its worker w" if stopping else "lost with its worker w"
    assert (grid.cell("a", 1).status, grid.cell("a", 1).message) == (Status.LOST, message)
    assert grid.cell("a", 1).losses == (0 if stopping else 1)
    assert actions.again == ([0] if stopping else [])
    assert (report.marked, report.requeued) == ((1, 1) if stopping else (2, 0))


def test_sweep_reclaims_ended_attempts_of_a_live_worker(store, grid, clock, sweep, actions):
    actions.policy = True
    grid.begin("a", 0, owner="w")
    report_ended(store, grid, clock)
    assert not sweep(), "the broker may deliver it again"
    clock.advance(LEASE / 3)
    sweep()
    assert (actions.again, grid.cell("a", 0).open, grid.cell("a", 0).losses) == ([0], False, 0)
    assert grid.cell("a", 0).message == "sent again: its worker w has stopped"
    assert "w" in workers(store)


def test_record_of_a_stopped_worker_is_kept_until_its_attempts_are_reclaimed(store, grid, clock, sweep, actions):
    actions.policy = True
    grid.begin("a", 0, owner="w")
    leases.renew(store, "w", Report(stopping=True), 0.0)
    clock.advance(1)
    assert not sweep(), "the broker may deliver it again"
    clock.advance(LEASE / 3)
    actions.policy = None
    sweep()
    assert "w" in workers(store)
    actions.policy = True
    sweep()
    assert (actions.again, grid.cell("a", 0).losses) == ([0], 0)
    assert "w" not in workers(store)


def test_sweep_sends_the_received_messages_of_a_blocked_worker_once(store, grid, clock, sweep, actions):
    received = [Received(grid.ref, "a", 0)]
    leases.renew(store, "w", Report(received=received, idle=LEASE), LEASE)
    sweep()
    assert actions.again == []
    for _ in range(2):
        leases.renew(store, "w", Report(received=received, idle=LEASE + 5), LEASE)
        sweep()
    assert actions.again == [0]
    cell, blocked = grid.cell("a", 0), "received by worker w, whose main loop is blocked"
    assert (cell.status, cell.delivery, cell.message) == (0, Delivery(1), f"sent again: {blocked}")
    assert grid.cell("a", 1).version == 0
    (text,) = [each.text for each in explain(store, grid.job) if str(each.rows) == "0"]
    assert "received by worker w, whose main loop has been blocked since 22:12:45 UTC" in text
    leases.renew(store, "another", Report(received=received, idle=LEASE + 5), LEASE)
    sweep()
    assert actions.again == [0], "it holds the same message"
    second = [Received(grid.ref, "a", 0, Delivery(1))]
    leases.renew(store, "another", Report(received=second, idle=LEASE + 5), LEASE)
    sweep()
    assert actions.again == [0, 0]


def test_messages_of_a_blocked_worker_that_shuts_down_are_not_sent(store, grid, sweep, actions):
    received = [Received(grid.ref, "a", 0)]
    leases.renew(store, "w", Report(received=received, idle=LEASE + 5, stopping=True), LEASE)
    sweep()
    assert actions.again == []


class Request:
    """A message of a tracked task whose body runs in a child, until the worker cancels it."""

    time_start = None
    acknowledged = False
    worker_pid = None
    _already_cancelled = False

    def __init__(self, binding):
        self.id = binding.celery_task_id
        self.request_dict = {HEADER: binding.to_header()}
        self.task = SimpleNamespace(name="task", on_lost="mark")
        self.message = SimpleNamespace(
            content_type="text/plain", content_encoding="utf-8", body="", headers={}, properties={}, delivery_info={}
        )
        self.delivery_info = {}

    def run(self, child):
        self.time_start, self.worker_pid = 1.0, child.pid
        worker_state.active_requests.add(self)

    def cancel(self):
        self._already_cancelled = True
        worker_state.active_requests.discard(self)


@pytest.fixture
def tracker():
    app = Celery("stopping", broker="memory://", set_as_current=False)
    return SimpleNamespace(
        app=app,
        settings=Settings(lease=LEASE),
        store=MemoryStore(),
        backlog=Backlog(),
        pending_files=PendingFiles(app.main),
        moving_files=PendingFiles(app.main, "moving"),
        held_messages=HeldMessages(),
    )


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def cancelled(tracker, child):
    grid = Grid.create(tracker.store, 1, ("a",))
    request = Request(Binding(grid.ref, 0, "a"))
    tracker.held_messages.add(request)
    request.run(child)
    return request


def ended_of(lease, tracker):
    lease.renew_if_needed()
    report = Report.from_record(workers(tracker.store)["w"])
    return len(report.running), len(report.ended)


def test_cancelled_body_is_running_until_its_child_has_ended(tracker, child, cancelled):
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    assert ended_of(lease, tracker) == (1, 0)
    cancelled.cancel()
    lease.renew()
    assert ended_of(lease, tracker) == (1, 0)
    duplicate = Request(Binding(tracker.held_messages.running()[0].ref, 0, "a"))
    tracker.held_messages.add(duplicate)
    assert ALONE not in duplicate.delivery_info
    child.kill()
    child.wait()
    assert ended_of(lease, tracker) == (0, 1)


def test_request_that_celery_drops_when_it_cancels_it_is_found(tracker, child):
    grid = Grid.create(tracker.store, 1, ("a",))
    requests = [Request(Binding(grid.ref, 0, "a"))]
    tracker.held_messages.add(requests[0])
    requests[0].run(child)
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    lease.announce_stop()
    child.kill()
    child.wait()
    requests.pop().cancel()
    lease.release()
    assert len(Report.from_record(workers(tracker.store)["w"]).ended) == 1


def test_message_received_after_the_end_records_it(tracker, child, cancelled):
    cancelled.cancel()
    child.kill()
    child.wait()
    again = Request(Binding(tracker.held_messages._cells[cancelled].ref, 0, "a"))
    tracker.held_messages.add(again)
    assert Alone(*again.delivery_info[ALONE]).stopped
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    assert ended_of(lease, tracker) == (0, 0), "its next attempt may have begun"


@pytest.mark.parametrize("alive", [True, False])
def test_released_lease_leaves_a_record_of_open_attempts(tracker, child, cancelled, alive):
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    lease.renew()
    if not alive:
        child.kill()
        child.wait()
    lease.release()
    record = workers(tracker.store)["w"]
    assert Report.from_record(record).stopping
    assert (record.lease_until > record.renewed_at) is alive


def test_released_lease_leaves_a_record_of_a_body_that_ended_without_a_result(tracker, child, cancelled):
    """As the worker kills a greenlet."""
    child.kill()
    child.wait()
    tracker.held_messages.abandon(cancelled.id)
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    lease.release()
    assert Report.from_record(workers(tracker.store)["w"]).stopping


def test_released_lease_of_an_idle_worker_leaves_no_record(tracker):
    lease = Lease(tracker, "w")
    lease.renew()
    lease.release()
    assert workers(tracker.store) == {}


def test_announced_stop_is_written_at_the_next_check(tracker):
    lease = Lease(tracker, "w", clock=lambda: 1.0)
    lease.renew()
    lease.announce_stop()
    lease.renew_if_needed()
    assert Report.from_record(workers(tracker.store)["w"]).stopping


class Consumer:
    """A consumer without an event loop, which calls what it was asked to when it turns."""

    hub = None

    def __init__(self):
        self.asked = []

    def call_soon(self, action):
        self.asked.append(action)

    def turn(self):
        while self.asked:
            self.asked.pop()()


def test_main_loop_is_idle_since_its_last_turn():
    now = [0.0]
    loop, consumer = MainLoop(10.0, lambda: now[0]), Consumer()
    loop.attach(consumer, runs_bodies=False)
    now[0] = 5.0
    assert loop.idle() == loop.idle() == 5.0
    assert len(consumer.asked) == 1
    consumer.turn()
    assert loop.idle() == 0.0
    now[0] = 50.0
    assert loop.idle() == 45.0


def test_main_loop_that_runs_a_body_is_not_idle(tracker, cancelled):
    now = [0.0]
    loop = MainLoop(10.0, lambda: now[0])
    loop.attach(Consumer(), runs_bodies=True)
    now[0] = 50.0
    assert loop.idle() == 0.0
    cancelled.cancel()
    assert loop.idle() == 50.0
