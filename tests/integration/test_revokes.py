"""What a cancellation spares the workers: the messages that come next, as many as they remember."""

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
def portions(states, monkeypatch):
    """The ids of each broadcast."""
    found = []
    monkeypatch.setattr(states.app.control, "revoke", found.append)
    return found


def cancelled_after(states, portions, begun, tags, num_tasks):
    """Begin so many rows under each tag, cancel, and give what was revoked as (row, stage)."""
    grid = Grid.create(states.store, num_tasks, tags)
    for tag, rows in begun.items():
        for row in rows:
            grid.run(tag, row, FINISHED)
    assert states.job("job").cancel("enough")
    ids = [each for portion in portions for each in portion]
    assert len(ids) == len(set(ids))
    return [tuple(map(int, each.removeprefix(f"{grid.ref.incarnation}.").split("."))) for each in ids]


def test_the_messages_that_come_next_are_revoked_in_portions_and_no_more_than_a_worker_remembers(states, portions):
    """A worker remembers 50,000 ids, of all jobs and of whoever revoked them: the last ones."""
    revoked = cancelled_after(states, portions, {"a": range(12_000)}, ("a",), 10_000_000)
    assert revoked == [(row, 0) for row in range(12_000, 22_000)]
    assert {len(portion) for portion in portions} == {1_000}


def test_rows_that_are_between_their_stages_are_among_them(states, portions):
    begun = {"a": range(50), "b": range(30)}
    revoked = cancelled_after(states, portions, begun, ("a", "b"), 100)
    assert revoked == [(row, stage) for row in range(30, 100) for stage in (0, 1)]


def test_stages_that_not_every_row_has_count_by_their_own_rows(states, portions):
    begun = {"a": range(100), "b": range(60, 70)}
    revoked = cancelled_after(states, portions, begun, {"a": range(100), "b": range(60, 90)}, 100)
    assert revoked == [(row, stage) for row in range(70, 100) for stage in ((0, 1) if row < 90 else (0,))]


def test_where_all_has_begun_nothing_is_revoked(states, portions):
    grid = Grid.create(states.store, 2, ("a",))
    for row in range(2):
        grid.begin("a", row)
    assert states.job("job").cancel()
    assert portions == []
