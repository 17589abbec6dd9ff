"""Compare a job and its subscriptions in a store with the expected job."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.drawn import ROWS, TAGS
from celery_statemanager.testing.expected_cells import comparable, message_of
from celery_statemanager.testing.kit import PATIENCE, Grid
from celery_statemanager.testing.model import ExpectedJob, Place
from celery_statemanager.testing.naive import check_grid, read_grid


def check_job(store: FullStore, expected: ExpectedJob) -> None:
    """Compare everything that can be read of a job with the expected job."""
    grid = Grid(store, expected.ref)
    job = grid.job
    assert (job.cancelled is not None, job.tombstoned_at is not None) == (expected.cancelled, expected.tombstoned)
    assert (job.cancelled.reason if job.cancelled else None) == expected.reason
    assert grid.decided == expected.decided
    assert job.flow == expected.job.flow
    assert (job.generation.number, bool(job.generation.rows_to_reset)) == (expected.generation, expected.is_resetting)
    outbox = store.get_outbox(expected.ref)
    assert outbox.claimed == expected.published
    assert {name: set(claim.rows) for name, claim in outbox.claims.items()} == expected.claims
    assert (set(outbox.returned.begun), set(outbox.returned.waiting)) == (expected.begun, expected.waiting)
    rows = range(-1, ROWS)
    assert {row: text for row in rows if (text := store.get_value(expected.ref, row)) is not None} == expected.values
    in_grid = [(row, text) for row, text in sorted(expected.values.items()) if row >= 0]
    assert list(store.list_values(expected.ref, IndexSet(range(ROWS)))) == in_grid
    cells, states = read_grid(grid, TAGS)
    for place, cell in cells.items():
        assert comparable(cell) == comparable(expected.cell(place))
        assert (states[place].status, states[place].message) == expected.visible(place)
    summary = grid.manager().summary(indexes=False)
    assert (summary.failed_rows, summary.max_failed) == (expected.failed_rows, expected.job.policy.max_failed)
    check_grid(grid, expected.places, cells, states)
    owned = {(tag, row) for (tag, row), cell in expected.cells.items() if cell.held}
    found = [each for each in store.list_open_attempts() if each.ref == grid.ref]
    assert {(each.tag, each.task_index) for each in found} == owned
    assert len(found) == len(owned)


@dataclass
class CheckedSubscription:
    """An open subscription and the events that it has delivered."""

    expected: ExpectedJob
    scope: Scope
    events: Subscription
    seen: dict[Place, int] = field(default_factory=dict)
    live: bool = False
    cursor: str | None = None
    repeatable: dict[Place, int] = field(default_factory=dict)
    """The versions of cells that may be delivered once more, because they may have been written after the cursor."""

    def check(self, event: StateEvent) -> None:
        """Check one event: versions rise, the state is that of its version, replay precedes live changes."""
        state = event.state
        place = (state.tag, state.task_index)
        assert self.scope.holds(*place)
        assert self.seen.get(place, 0) < state.version or self.repeatable.pop(place, None) == state.version
        assert state.version <= self.expected.cell(place).version
        assert not event.resync
        assert not (event.replay and self.live)
        self.live = self.live or not event.replay
        self.seen[place] = state.version
        self.cursor = event.cursor
        cell = self.expected.history[place, state.version]
        may_be_cancelled = self.expected.cancelled or self.expected.generation > 1  # when it was listed
        masked = may_be_cancelled and cell.status == 0 and not cell.open
        assert (state.status, state.message) == (cell.status, message_of(cell)) or masked
        assert state.stalled == (cell.stall.since != 0)
        assert (state.event_id, state.attempt) == (cell.event_id, cell.attempt)

    def continue_after_last_event(self, store: FullStore) -> None:
        """Replace the subscription by one that continues at its last event."""
        self.events.close()
        self.events = Subscription(store, self.expected.ref, self.scope, since=self.cursor)
        self.live, self.repeatable = False, dict(self.seen)
        if self.cursor is None:
            self.seen.clear()

    def drain(self) -> None:
        """Read until the last version of every cell has arrived, and check that no other event follows."""
        deadline = time.monotonic() + PATIENCE
        while self.missing():
            event = self.events.get(deadline - time.monotonic())
            assert event is not None, f"did not receive {self.missing()}"
            self.check(event)
        assert self.events.get(0.0) is None

    def end(self) -> None:
        """Read until the subscription ends because its job was deleted."""
        while (event := self.events.get(PATIENCE)) is not None:
            self.check(event)
        assert self.events.closed

    def missing(self) -> dict[Place, int]:
        """Return the last versions that have not arrived."""
        return {
            place: cell.version
            for place, cell in self.expected.cells.items()
            if self.scope.holds(*place) and self.seen.get(place, 0) < cell.version
        }
