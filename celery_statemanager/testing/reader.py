"""The comparison of a subscription with the model of its job."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.kit import PATIENCE
from celery_statemanager.testing.model import JobModel, Place


@dataclass
class Reader:
    """An open subscription and the versions that it has yielded."""

    model: JobModel
    scope: Scope
    events: Subscription
    seen: dict[Place, int] = field(default_factory=dict)
    live: bool = False

    def take(self, event: StateEvent) -> None:
        """Check one event: versions increase, the content is that of the version, and replay precedes live."""
        state = event.state
        place = (state.tag, state.task_index)
        assert self.scope.holds(*place)
        assert self.seen.get(place, 0) < state.version <= self.model.cell(place).version
        assert not (event.replay and self.live)
        self.live = self.live or not event.replay
        self.seen[place] = state.version
        cell = self.model.history[place, state.version]
        masked = self.model.cancelled and cell.status == 0 and not cell.open
        assert (state.status, state.message) == (cell.status, cell.message) or masked
        assert (state.event_id, state.attempt) == (cell.event_id, cell.attempt)

    def drain(self) -> None:
        """Read until the last version of every cell has arrived, and check that nothing follows."""
        deadline = time.monotonic() + PATIENCE
        while self.missing():
            event = self.events.get(deadline - time.monotonic())
            assert event is not None, f"did not get {self.missing()}"
            self.take(event)
        assert self.events.get(0.0) is None

    def end(self) -> None:
        """Read until the subscription ends because its job was deleted."""
        while (event := self.events.get(PATIENCE)) is not None:
            self.take(event)
        assert self.events.closed

    def missing(self) -> dict[Place, int]:
        """Return the last versions that have not arrived yet."""
        return {
            place: cell.version
            for place, cell in self.model.cells.items()
            if self.scope.holds(*place) and self.seen.get(place, 0) < cell.version
        }
