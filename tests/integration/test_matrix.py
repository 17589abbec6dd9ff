"""The matrix of outcomes, played by real workers."""

import re
import signal
import time
from contextlib import suppress
from subprocess import TimeoutExpired

import pytest
from matrix_rows import OUTCOMES
from matrix_table import shown, table
from workers import Worker

from celery_statemanager.integration.binding import Binding

PATIENCE = 40
SOFT_SHUTDOWN = "2"
PLACES = [
    ("redis-redis", "prefork"),
    ("folders-sqlite", "gevent"),
    ("rabbitmq-redis", "threads"),
    ("folders-sqlite", "solo"),
    ("folders-sqlite", "prefork"),
    ("folders-sqlite", "threads"),
    ("rabbitmq-redis", "prefork"),
    ("redis-redis", "threads"),
    ("redis-redis", "gevent"),
]


class Stage:
    """One job of several outcomes, one row each, and what the test does to its tasks."""

    def __init__(self, tracked, pool, key, outcomes, queue):
        self.tracked, self.pool, self.key, self.outcomes, self.queue = tracked, pool, key, outcomes, queue
        self.job = tracked.states.submit([self._member(row) for row in range(len(outcomes))])

    def _member(self, row):
        outcome = self.outcomes[row]
        queue = "nobody" if outcome.act == "revoke_and_send" else self.queue
        signature = self.tracked.app.signature(outcome.task, (outcome.body, f"{self.key}.{row}"))
        return self.tracked.states.tag(signature, "work").set(queue=queue, **outcome.options)

    def play(self):
        for row, outcome in enumerate(self.outcomes):
            if outcome.act:
                getattr(self, outcome.act)(row)
        self.job.wait(PATIENCE)

    def revoke(self, row, **options):
        celery_id = Binding(self.job.manager.ref, row, "work").celery_task_id
        self.tracked.app.control.revoke(celery_id, destination=[f"{self.pool}@test"], **options)

    def revoke_and_send(self, row):
        self.revoke(row, reply=True, timeout=PATIENCE, limit=1)
        bound = Binding(self.job.manager.ref, row, "work").bind(self._member(row))
        bound.set(queue=self.queue).apply_async()

    def terminate(self, row, signal="SIGTERM"):
        self.wait_until_begun(row)
        self.revoke(row, terminate=True, signal=signal)
        if self.outcomes[row].ending(self.pool).status > 0:
            self.let_go(row)

    def terminate_by_kill(self, row):
        self.terminate(row, "SIGKILL")

    def wait_until_begun(self, row):
        deadline = time.monotonic() + PATIENCE
        while not self.tracked.notes(f"{self.key}.{row}"):
            assert time.monotonic() < deadline, f"row {row} did not begin"
            time.sleep(0.02)

    def let_go(self, row):
        (self.tracked.HOME / f"{self.key}.{row}.go").touch()


class Fate:
    """A worker of its own that ends in some way while it runs a job of its own."""

    def __init__(self, setting, pool, queue, name, outcomes):
        self.name = name
        soft = {"TRACKED_SOFT_SHUTDOWN": SOFT_SHUTDOWN} if name.startswith("soft") else {}
        self.worker = Worker({**setting.environment, **soft}, pool, queue, concurrency=len(outcomes) + 1)
        self.stage = Stage(setting.tracked, pool, queue, outcomes, queue)

    def befall(self):
        for row in range(len(self.stage.outcomes)):
            self.stage.wait_until_begun(row)
        getattr(self, self.name)()

    def by_itself(self):
        pass

    def warm(self):
        self.worker.process.terminate()
        self.stage.let_go(0)

    def soft(self):
        self.worker.process.send_signal(signal.SIGQUIT)
        self.stage.let_go(0)

    def cold(self):
        self.worker.process.send_signal(signal.SIGQUIT)

    soft_end = cold

    def killed(self):
        self.worker.kill()


@pytest.fixture(scope="session")
def stage(tracked, pool):
    outcomes = [each for each in OUTCOMES if each.ending(pool) and not each.fate]
    stage = Stage(tracked, pool, f"matrix-{pool}", outcomes, pool)
    with suppress(AssertionError, TimeoutError):  # each test says what became of its row
        stage.play()
    return stage


@pytest.fixture(scope="session")
def fates(setting, pool):
    """Play all fates of workers at the same time; give the job of each outcome, and its row."""
    played = [
        Fate(setting, pool, f"{pool}-{number}", name, outcomes) for number, (name, outcomes) in enumerate(grouped(pool))
    ]
    workers = [fate.worker for fate in played]
    with suppress(AssertionError, TimeoutError, TimeoutExpired):  # each test says what became of its row
        for fate in played:
            fate.befall()
        for fate in played:
            if fate.name != "by_itself":
                fate.worker.process.wait(PATIENCE)
        workers.append(Worker(setting.environment, pool, ",".join(fate.stage.queue for fate in played)))
        for fate in played:
            fate.stage.job.wait(PATIENCE)
    for worker in workers:
        worker.kill()
    return {each.what: (fate.stage.job, row) for fate in played for row, each in enumerate(fate.stage.outcomes)}


def grouped(pool):
    """Group the outcomes by fate; one that comes by itself, or a solo worker, is for one outcome alone."""
    groups = {}
    for number, outcome in enumerate(OUTCOMES):
        if outcome.fate and outcome.ending(pool):
            alone = pool == "solo" or outcome.fate == "by_itself"
            groups.setdefault((outcome.fate, number if alone else None), []).append(outcome)
    return [(name, outcomes) for (name, _), outcomes in groups.items()]


@pytest.mark.places(*PLACES, usual=3)
@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if not each.fate], ids=str)
def test_what_a_cell_ends_with(outcome, stage, pool):
    if outcome.ending(pool) is None:
        pytest.skip(f"cannot happen in the {pool} pool")
    check(outcome.ending(pool), stage.job.get_state("work", stage.outcomes.index(outcome)))


@pytest.mark.full
@pytest.mark.places(*PLACES)
@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if each.fate], ids=str)
def test_what_a_cell_ends_with_when_its_worker_does(outcome, fates, pool):
    if outcome.ending(pool) is None:
        pytest.skip(f"cannot happen in the {pool} pool")
    job, row = fates[outcome.what]
    check(outcome.ending(pool), job.get_state("work", row))


@pytest.fixture(scope="session")
def eager_stage(eager):
    outcomes = [each for each in OUTCOMES if each.ending("eager")]
    return Stage(eager, "eager", "matrix-eager", outcomes, None)


@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if each.ending("eager")], ids=str)
def test_what_a_cell_ends_with_in_eager_mode(outcome, eager_stage):
    check(outcome.ending("eager"), eager_stage.job.get_state("work", eager_stage.outcomes.index(outcome)))


def test_the_docs_show_this_matrix():
    """``python tests/integration/matrix_table.py`` writes it."""
    assert shown() == table()


def check(ends, state):
    assert state.status == ends.status, state
    assert re.fullmatch(ends.message or "None", str(state.message), re.DOTALL), state
    assert state.attempt == ends.attempt, state
    assert state.version <= ends.writes, state
