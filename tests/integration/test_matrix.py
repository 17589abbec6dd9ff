"""The matrix of outcomes, played by real workers: one job a place, one row an outcome."""

import re
import time
from contextlib import suppress

import pytest
from matrix import OUTCOMES

from celery_statemanager.integration.binding import Binding

PATIENCE = 40


class Stage:
    """One job of all outcomes that a pool can have, and what the test does to its tasks."""

    def __init__(self, tracked, pool, key):
        self.tracked, self.pool, self.key = tracked, pool, key
        self.outcomes = [each for each in OUTCOMES if each.ending(pool)]
        self.job = tracked.states.submit([self._member(row) for row in range(len(self.outcomes))])

    def _member(self, row):
        outcome = self.outcomes[row]
        queue = "nobody" if outcome.act == "revoke_and_send" else self.pool
        signature = self.tracked.app.signature(outcome.task, (outcome.body, f"{self.key}.{row}"))
        return self.tracked.states.tag(signature, "work").set(queue=queue, **outcome.options)

    def play(self):
        for row, outcome in enumerate(self.outcomes):
            if outcome.act:
                getattr(self, outcome.act)(row)
        self.job.wait(PATIENCE)

    def celery_id(self, row):
        return Binding(self.job.manager.ref, row, "work").celery_task_id

    def revoke(self, row, **options):
        self.tracked.app.control.revoke(self.celery_id(row), destination=[f"{self.pool}@test"], **options)

    def revoke_and_send(self, row):
        self.revoke(row, reply=True, timeout=PATIENCE, limit=1)
        bound = Binding(self.job.manager.ref, row, "work").bind(self._member(row))
        bound.set(queue=self.pool).apply_async()

    def terminate(self, row, signal="SIGTERM"):
        key = f"{self.key}.{row}"
        deadline = time.monotonic() + PATIENCE
        while not self.tracked.notes(key):
            assert time.monotonic() < deadline, f"row {row} did not begin"
            time.sleep(0.02)
        self.revoke(row, terminate=True, signal=signal)
        if self.outcomes[row].ending(self.pool).status > 0:
            (self.tracked.HOME / f"{key}.go").touch()

    def terminate_by_kill(self, row):
        self.terminate(row, "SIGKILL")


@pytest.fixture(scope="session")
def stage(tracked, pool):
    stage = Stage(tracked, pool, f"matrix-{pool}")
    with suppress(AssertionError, TimeoutError):  # each test says what became of its row
        stage.play()
    return stage


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_what_a_cell_ends_with(outcome, stage, pool):
    ends = outcome.ending(pool)
    if ends is None:
        pytest.skip(f"cannot happen in the {pool} pool")
    state = stage.job.get_state("work", stage.outcomes.index(outcome))
    assert state.status == ends.status, state
    assert re.fullmatch(ends.message or "None", str(state.message), re.DOTALL), state
    assert (state.attempt, state.version) == (ends.attempt, ends.writes), state
