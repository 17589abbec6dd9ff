"""One round: submit a job, inject faults while it runs, wait until it settles, rerun what failed, check the guarantees.

Nothing is sent by hand: the job recovers by itself from every fault.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType

from celery.canvas import Signature

from celery_statemanager import State
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.records import CALLBACK_ROW, LATCHES, Cell
from celery_statemanager.stores import Store
from chaos import checks, faults
from chaos.places import Place
from chaos.workers import Workers

ROWS = 16
SETTLE_TIMEOUT = 90.0
SUBSCRIPTION_TIMEOUT = 20.0
"""Seconds within which a subscription must end after its job has settled."""


@dataclass
class Outcome:
    """The result of a round.

    Attributes:
        faults: the injected faults.
        violations: the violated guarantees, as sentences.
    """

    faults: list[str]
    seconds: float
    violations: list[str]


def run_round(place: Place, workers: Workers, seed: str) -> Outcome:
    """Run one round. Raises: AssertionError if a worker does not start."""
    rng = random.Random(seed)
    drawn = faults.draw(rng, place, workers)
    workers.ensure_ready()
    start = time.monotonic()
    with MixedJob.submit(rng, ROWS) as mixed:
        injected = faults.inject(drawn, mixed.job)
        workers.ensure_ready()
        mixed.wait()
    violations = mixed.violations()
    if not violations and rng.random() < 0.5 and mixed.rerun():
        injected += ["rerun", *faults.inject(faults.draw(rng, place, workers)[:1], mixed.job)]
        workers.ensure_ready()
        mixed.wait()
        violations = [f"after the rerun: {each}" for each in mixed.violations(streamed=False)]
    violations += [f"process still running: {process}" for process in workers.leftovers()]
    return Outcome(injected, time.monotonic() - start, violations)


class MixedJob:
    """A job of random tasks: some are requeued, retried, chained, fail or are marked LOST with their worker.

    As a context manager, records what a subscriber receives until the job has settled or the block ends.
    """

    def __init__(self, job: Job, kinds: list[str]) -> None:
        self.job = job
        self._kinds = kinds
        self._states: list[State] = []
        self._stack = ExitStack()

    @classmethod
    def submit(cls, rng: random.Random, rows: int) -> MixedJob:
        """Submit a job that keeps its results and has all callbacks. Some have a window."""
        from chaos import app  # reads environment variables that the caller sets first

        often = ["requeued", "requeued", "chained", "marked", "retried"]
        kinds = [rng.choice([*often, *["failing"] * rng.randint(0, 1)]) for _ in range(rows)]
        members = [_member(app, kind, rng.uniform(0.2, 1.5)) for kind in kinds]
        callbacks = {f"on_{latch}": app.callback.s() for latch in LATCHES}
        window = rng.choice([None, None, 3, 6])
        return cls(app.states.submit(members, max_in_flight=window, results=True, **callbacks), kinds)

    def __enter__(self) -> MixedJob:
        self._stack.enter_context(_recorded_states(self.job, self._states))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Wait until the job and its callbacks are done, at most ``SETTLE_TIMEOUT`` seconds."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while not _done(self._store, self.job) and time.monotonic() < deadline:
            time.sleep(0.1)

    def rerun(self) -> bool:
        """Run the failed rows again. Return False if there are none."""
        return bool(self.job.rerun("failed").rows)

    def violations(self, *, streamed: bool = True) -> list[str]:
        """Return the violated guarantees, as sentences.

        Args:
            streamed: check also what the subscriber received.
        """
        from chaos import app

        store, job, limit = self._store, self.job, app.states.settings.max_lost
        found = checks.job_violations(store, job, self._kinds, app.notes(job.id), limit)
        found += checks.result_violations(store, job, self._kinds)
        return [*found, *checks.stream_violations(store, job, self._states)] if streamed else found

    @property
    def _store(self) -> Store:
        from chaos import app

        return app.states.store


@contextmanager
def _recorded_states(job: Job, states: list[State]) -> Iterator[None]:
    with job.subscribe(until_settled=True) as events:
        reader = threading.Thread(target=lambda: states.extend(event.state for event in events), daemon=True)
        reader.start()
        yield
        reader.join(SUBSCRIPTION_TIMEOUT)


def _done(store: Store, job: Job) -> bool:
    record = store.get_job(job.manager.ref.key)
    decided = [record.callback_tag(name) for name, latch in record.latches.items() if latch.decided_at is not None]
    cells = [store.get_cell(record.ref, tag, CALLBACK_ROW) or Cell() for tag in decided]
    return record.settled and not record.due and all(cell.final for cell in cells)


def _member(app: ModuleType, kind: str, seconds: float) -> Signature:
    if kind == "chained":
        return app.requeued.s(seconds) | app.second.s()
    return getattr(app, kind).s(seconds)
