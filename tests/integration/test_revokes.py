"""Cancel revokes the messages that workers would receive next, up to the number that they remember."""

import pytest
from celery import Celery

from celery_statemanager import StateManager
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FINISHED


@pytest.fixture
def states():
    app = Celery("revokes", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    return StateManager(app)


@pytest.fixture
def broadcasts(states, monkeypatch):
    """Return the ids of each revoke broadcast."""
    sent = []
    monkeypatch.setattr(states.app.control, "revoke", sent.append)
    return sent


def cancel_after(states, broadcasts, begun, tags, num_tasks):
    """Begin rows under each tag, cancel the job, and return the revoked cells as (row, stage)."""
    grid = Grid.create(states.store, num_tasks, tags)
    for tag, rows in begun.items():
        for row in rows:
            grid.run(tag, row, FINISHED)
    assert states.job("job").cancel("enough")
    ids = [each for broadcast in broadcasts for each in broadcast]
    assert len(ids) == len(set(ids))
    return [tuple(map(int, each.removeprefix(f"{grid.ref.incarnation}.").split("."))) for each in ids]


def test_cancel_revokes_the_next_messages_in_batches_up_to_a_limit(states, broadcasts):
    """A worker remembers the last 50,000 revoked ids of all jobs."""
    revoked = cancel_after(states, broadcasts, {"a": range(12_000)}, ("a",), 10_000_000)
    assert revoked == [(row, 0) for row in range(12_000, 22_000)]
    assert {len(broadcast) for broadcast in broadcasts} == {1_000}


def test_cancel_revokes_rows_between_two_stages(states, broadcasts):
    begun = {"a": range(50), "b": range(30)}
    revoked = cancel_after(states, broadcasts, begun, ("a", "b"), 100)
    assert revoked == [(row, stage) for row in range(30, 100) for stage in (0, 1)]


def test_cancel_counts_begun_rows_per_stage(states, broadcasts):
    begun = {"a": range(100), "b": range(60, 70)}
    revoked = cancel_after(states, broadcasts, begun, {"a": range(100), "b": range(60, 90)}, 100)
    assert revoked == [(row, stage) for row in range(70, 100) for stage in ((0, 1) if row < 90 else (0,))]


def test_cancel_revokes_nothing_when_every_row_has_begun(states, broadcasts):
    grid = Grid.create(states.store, 2, ("a",))
    for row in range(2):
        grid.begin("a", row)
    assert states.job("job").cancel()
    assert broadcasts == []
