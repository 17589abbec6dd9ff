"""One round: submit a job, inject faults while it runs, wait until it settles, rerun what failed, check the guarantees.

Nothing is sent by hand: the job recovers by itself from every fault.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    from chaos import app  # reads environment variables that the caller sets first

    rng = random.Random(seed)
    often = ["requeued", "requeued", "chained", "marked", "retried"]
    kinds = [rng.choice([*often, *["failing"] * rng.randint(0, 1)]) for _ in range(ROWS)]
    members = [_member(app, kind, rng.uniform(0.2, 1.5)) for kind in kinds]
    drawn, window = faults.draw(rng, place, workers), rng.choice([None, None, 3, 6])
    workers.ensure_ready()
    start = time.monotonic()
    callbacks = {f"on_{latch}": app.callback.s() for latch in LATCHES}
    job = app.states.submit(members, max_in_flight=window, results=True, **callbacks)
    store, limit = app.states.store, app.states.settings.max_lost
    with _recorded_states(job) as states:
        injected = faults.inject(drawn, job)
        workers.ensure_ready()
        _wait(store, job)
    violations = checks.job_violations(store, job, kinds, app.notes(job.id), limit)
    violations += [*checks.stream_violations(store, job, states), *checks.result_violations(store, job, kinds)]
    if not violations and rng.random() < 0.5 and job.rerun("failed").rows:
        injected += ["rerun", *faults.inject(faults.draw(rng, place, workers)[:1], job)]
        workers.ensure_ready()
        _wait(store, job)
        found = checks.job_violations(store, job, kinds, app.notes(job.id), limit)
        found += checks.result_violations(store, job, kinds)
        violations += [f"after the rerun: {each}" for each in found]
    violations += [f"process still running: {process}" for process in workers.leftovers()]
    return Outcome(injected, time.monotonic() - start, violations)


def _member(app, kind: str, seconds: float):
    if kind == "chained":
        return app.requeued.s(seconds) | app.second.s()
    return getattr(app, kind).s(seconds)


@contextmanager
def _recorded_states(job: Job) -> Iterator[list[State]]:
    """Record the states that a subscriber receives until the job has settled or the block ends."""
    states: list[State] = []
    with job.subscribe(until_settled=True) as events:
        reader = threading.Thread(target=lambda: states.extend(event.state for event in events), daemon=True)
        reader.start()
        yield states
        reader.join(SUBSCRIPTION_TIMEOUT)


def _wait(store: Store, job: Job) -> None:
    """Wait until the job and its callbacks are done."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while not _done(store, job) and time.monotonic() < deadline:
        time.sleep(0.1)


def _done(store: Store, job: Job) -> bool:
    record = store.get_job(job.manager.ref.key)
    decided = [record.callback_tag(name) for name, latch in record.latches.items() if latch.decided_at is not None]
    cells = [store.get_cell(record.ref, tag, CALLBACK_ROW) or Cell() for tag in decided]
    return record.settled and not record.due and all(cell.final for cell in cells)
