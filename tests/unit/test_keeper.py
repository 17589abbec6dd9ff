"""What a worker says of itself, and when its sweep dares to declare others dead."""

import time
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_statemanager import Status, StoreUnavailable, leases
from celery_statemanager.integration import keeper, worker_requests
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.keeper import Lease, keep_sweeping
from celery_statemanager.integration.settings import Settings
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import PATIENCE

LEASE = 0.6


@pytest.fixture
def tracker():
    app = Celery("kept", broker="memory://", set_as_current=False)
    settings = Settings(lease=LEASE, sweep_interval=0.02)
    return SimpleNamespace(app=app, settings=settings, store=FaultyStore(open_store("memory://")))


@pytest.fixture
def dead(tracker):
    """A cell whose worker's lease has run out."""
    grid = Grid.create(tracker.store, 1, ("a",))
    grid.begin("a", 0, owner="dead")
    tracker.store.put_worker("dead", Report().to_json(), 0)
    return grid


def seconds_until_lost(tracker, grid):
    began = time.monotonic()
    sweeping = keep_sweeping(tracker, "me")
    with grid.manager().subscribe("a") as events:
        while events.get(PATIENCE).state.status != Status.LOST:
            pass
    sweeping.stop()
    return time.monotonic() - began


def test_who_has_just_started_to_sweep_waits_for_two_renewals_of_the_others(tracker, dead):
    assert seconds_until_lost(tracker, dead) >= 2 / 3 * LEASE


def test_nobody_is_declared_dead_for_one_lease_after_the_store_has_failed(tracker, dead):
    failures = []

    def fail(_):
        failures.append(time.monotonic())
        raise StoreUnavailable("down")

    tracker.store.at("list_workers", fail, times=3)
    began = time.monotonic()
    lost_after = seconds_until_lost(tracker, dead)
    assert failures[-1] - began + LEASE <= lost_after


def test_who_stood_still_with_its_machine_starts_anew(monkeypatch):
    trust = keeper._Trust(0.0, 1.0)
    assert trust.holds()
    trust._lease = LEASE
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1.5)
    assert not trust.holds()


def test_what_ran_at_a_renewal_that_failed_is_not_forgotten(tracker, monkeypatch):
    grid = Grid.create(tracker.store, 2, ("a",))
    bindings = [Binding(grid.ref, row, "a") for row in range(2)]
    names = [cell_name(grid.ref, "a", row) for row in range(2)]
    lease = Lease(tracker, "w")

    def renewed(*running):
        monkeypatch.setattr(worker_requests, "running", lambda: [*running])
        lease.renew()
        return Report.of(leases.workers(tracker.store)["w"])

    assert (renewed(bindings[0]).running, renewed(bindings[0]).previous) == ([names[0]], [])
    with tracker.store.away():
        for running in ([bindings[1]], []):
            with pytest.raises(StoreUnavailable):
                renewed(*running)
    after = renewed()
    assert (after.running, sorted(after.previous)) == ([], sorted(names))
    assert renewed().previous == []
