"""The matrix of outcomes, tested with real workers."""

import re
import signal
import threading
import time
from contextlib import suppress
from subprocess import TimeoutExpired

import pytest
from matrix_rows import OUTCOMES
from matrix_table import shown, table
from workers import SPAWN, Worker

from celery_statemanager import StoreError
from celery_statemanager.integration.binding import Binding
from celery_statemanager.models import status_name

PATIENCE = 80
SOFT_SHUTDOWN = "2"
PLACES = [
    ("redis-redis", "prefork"),
    ("folders-sqlite", "gevent"),
    ("rabbitmq-redis", "threads"),
    ("folders-sqlite", SPAWN),
    ("folders-sqlite", "solo"),
    ("folders-sqlite", "prefork"),
    ("folders-sqlite", "threads"),
    ("rabbitmq-redis", "prefork"),
    ("redis-redis", "threads"),
    ("redis-redis", "gevent"),
    ("redis-firestore", "gevent"),
]


class Stage:
    """One job with one row per outcome, and the actions of the test on its tasks."""

    def __init__(self, tracked, pool, key, outcomes, queue):
        self.tracked, self.pool, self.key, self.outcomes, self.queue = tracked, pool, key, outcomes, queue
        self.job = tracked.states.submit([self._member(row) for row in range(len(outcomes))])
        self.history = [[] for _ in outcomes]
        threading.Thread(target=self._record, daemon=True).start()

    def _record(self):
        with suppress(StoreError), self.job.subscribe("work", until_settled=True) as events:
            for event in events:
                state = event.state
                written = f"{state.timestamp:%X.%f} version {state.version} attempt {state.attempt}"
                self.history[state.task_index].append(f"{written} {status_name(state.status)} {state.message or ''}")

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
            self.release(row)

    def terminate_by_kill(self, row):
        self.terminate(row, "SIGKILL")

    def wait_until_begun(self, row):
        deadline = time.monotonic() + PATIENCE
        while not self.tracked.notes(f"{self.key}.{row}"):
            assert time.monotonic() < deadline, f"row {row} did not begin"
            time.sleep(0.02)

    def release(self, row):
        (self.tracked.HOME / f"{self.key}.{row}.go").touch()


class EndingWorker:
    """A worker that ends in a given way while it runs a job of its own."""

    def __init__(self, setting, pool, queue, name, outcomes):
        self.name = name
        soft = {"TRACKED_SOFT_SHUTDOWN": SOFT_SHUTDOWN} if name.startswith("soft") else {}
        self.worker = Worker({**setting.environment, **soft}, pool, queue, concurrency=len(outcomes) + 1)
        self.stage = Stage(setting.tracked, pool, queue, outcomes, queue)

    def end(self):
        for row in range(len(self.stage.outcomes)):
            self.stage.wait_until_begun(row)
        getattr(self, self.name)()

    def self_inflicted(self):
        pass

    def warm(self):
        self.worker.process.terminate()
        self.stage.release(0)

    def soft(self):
        self.worker.process.send_signal(signal.SIGQUIT)
        self.stage.release(0)

    def cold(self):
        self.worker.process.send_signal(signal.SIGQUIT)

    soft_end = cold

    def killed(self):
        self.worker.kill()


@pytest.fixture(scope="session")
def played():
    """Return what was played in each place. Pytest may set up a fixture of a place more than once."""
    return {}


@pytest.fixture
def stage(played, place, tracked, pool):
    if place not in played:
        played[place] = play_stage(tracked, pool)
    return played[place]


@pytest.fixture
def jobs_of_ending_workers(played, place, setting, pool):
    if ("ending", place) not in played:
        played["ending", place] = end_workers(setting, pool)
    return played["ending", place]


def play_stage(tracked, pool):
    outcomes = [each for each in OUTCOMES if each.ending(pool) and not each.worker_end]
    stage = Stage(tracked, pool, f"matrix-{pool}", outcomes, pool)
    with suppress(AssertionError, TimeoutError):  # each test checks its own row
        stage.play()
    return stage


def end_workers(setting, pool):
    """End one worker in each way, all at the same time; return the stage and row of each outcome."""
    ending_workers = [
        EndingWorker(setting, pool, f"{pool}-{number}", name, outcomes)
        for number, (name, outcomes) in enumerate(grouped(pool))
    ]
    workers = [ending_worker.worker for ending_worker in ending_workers]
    with suppress(AssertionError, TimeoutError, TimeoutExpired):  # each test checks its own row
        for ending_worker in ending_workers:
            ending_worker.end()
        for ending_worker in ending_workers:
            if ending_worker.name != "self_inflicted":
                ending_worker.worker.process.wait(PATIENCE)
        workers.append(
            Worker(setting.environment, pool, ",".join(ending_worker.stage.queue for ending_worker in ending_workers))
        )
        for ending_worker in ending_workers:
            ending_worker.stage.job.wait(PATIENCE)
    for worker in workers:
        worker.kill()
    return {
        each.what: (ending_worker.stage, row)
        for ending_worker in ending_workers
        for row, each in enumerate(ending_worker.stage.outcomes)
    }


def grouped(pool):
    """Group outcomes by how the worker ends; self-inflicted ends and solo workers have one outcome each."""
    groups = {}
    for number, outcome in enumerate(OUTCOMES):
        if outcome.worker_end and outcome.ending(pool):
            alone = pool == "solo" or outcome.worker_end == "self_inflicted"
            groups.setdefault((outcome.worker_end, number if alone else None), []).append(outcome)
    return [(name, outcomes) for (name, _), outcomes in groups.items()]


@pytest.mark.places(*PLACES, usual=3)
@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if not each.worker_end], ids=str)
def test_a_cell_ends_as_the_matrix_states(outcome, stage, pool):
    if outcome.ending(pool) is None:
        pytest.skip(f"cannot happen in the {pool} pool")
    assert_ended(outcome.ending(pool), stage, stage.outcomes.index(outcome))


@pytest.mark.full
@pytest.mark.places(*PLACES)
@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if each.worker_end], ids=str)
def test_a_cell_ends_as_the_matrix_states_when_its_worker_ends(outcome, jobs_of_ending_workers, pool):
    if outcome.ending(pool) is None:
        pytest.skip(f"cannot happen in the {pool} pool")
    assert_ended(outcome.ending(pool), *jobs_of_ending_workers[outcome.what])


@pytest.fixture(scope="session")
def eager_stage(eager_tracked):
    outcomes = [each for each in OUTCOMES if each.ending("eager")]
    return Stage(eager_tracked, "eager", "matrix-eager", outcomes, None)


@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if each.ending("eager")], ids=str)
def test_a_cell_ends_as_the_matrix_states_in_eager_mode(outcome, eager_stage):
    assert_ended(outcome.ending("eager"), eager_stage, eager_stage.outcomes.index(outcome))


def test_the_documentation_shows_the_matrix():
    """Run ``python tests/integration/matrix_table.py`` to write it."""
    assert shown() == table()


def assert_ended(ends, stage, row):
    state, history = stage.job.get_state("work", row), "\n".join(stage.history[row])
    assert state.status == ends.status, history
    assert re.fullmatch(ends.message or "None", str(state.message), re.DOTALL), history
    assert state.attempt == ends.attempt, history
    assert state.version <= ends.writes, history
