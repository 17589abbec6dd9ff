"""One round: submit a job, inject faults while it runs, wait until it settles, and check the guarantees."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from celery.canvas import Signature

from celery_statemanager import State
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord
from celery_statemanager.stores import Store
from celery_statemanager.testing.celery import Published, published
from chaos import checks, faults
from chaos.checks import NO_ATTEMPT
from chaos.places import Place
from chaos.workers import Workers

ROWS = 16
SETTLE_TIMEOUT = 60.0
SUBSCRIPTION_TIMEOUT = 5.0
"""Seconds within which a subscription must end after its job has settled."""

IDLE_LIMIT = 10.0
"""Seconds without any change after which a message that no worker holds counts as lost by the broker."""


@dataclass
class Outcome:
    """The result of a round.

    Attributes:
        faults: the injected faults.
        lost: number of messages that the broker lost or held back, and that the round sent again.
        unrecorded: number of messages sent again because their task ran during an outage of the store, in a worker
            that was killed before the outage ended.
        violations: the violated guarantees, as sentences.
    """

    faults: list[str]
    seconds: float
    lost: int
    unrecorded: int
    violations: list[str]


def run_round(place: Place, workers: Workers, seed: str) -> Outcome:
    """Run one round. Raises: AssertionError if a worker does not start."""
    from chaos import app  # reads environment variables that the caller sets first

    rng = random.Random(seed)
    kinds = [
        rng.choice(["requeued", "requeued", "marked", "retried", *["failing"] * rng.randint(0, 1)]) for _ in range(ROWS)
    ]
    members = [getattr(app, kind).s(rng.uniform(0.2, 1.5)) for kind in kinds]
    drawn = faults.draw(rng, place, workers)
    workers.ensure_ready()
    start = time.monotonic()
    callbacks = {f"on_{latch}": app.callback.s() for latch in ("success", "failure", "settled")}
    with published(app.app) as messages:
        job = app.states.submit(members, **callbacks)
    with _recorded_states(job) as states:
        injected = faults.inject(drawn)
        workers.ensure_ready()
        resent = _wait(app.states.store, job, messages, app.callback.s(), lambda: app.notes(job.id))
    limit = app.states.settings.max_lost
    violations = checks.job_violations(app.states.store, job, kinds, app.notes(job.id), limit)
    violations += checks.stream_violations(app.states.store, job, states)
    violations += [f"process still running: {process}" for process in workers.leftovers()]
    return Outcome(injected, time.monotonic() - start, resent["lost"], resent["unrecorded"], violations)


@contextmanager
def _recorded_states(job: Job) -> Iterator[list[State]]:
    """Record the states that a subscriber receives until the job has settled or the block ends."""
    states: list[State] = []
    with job.subscribe(until_settled=True) as events:
        reader = threading.Thread(target=lambda: states.extend(event.state for event in events), daemon=True)
        reader.start()
        yield states
        reader.join(SUBSCRIPTION_TIMEOUT)


def _wait(
    store: Store, job: Job, messages: list[Published], callback: Signature[Any], notes: Callable[[], list[list[str]]]
) -> Counter[str]:
    """Wait until the job and its callbacks are done, and send lost messages again. Return their counts by reason."""
    resent: Counter[str] = Counter()
    deadline, last, since = time.monotonic() + SETTLE_TIMEOUT, None, time.monotonic()
    while not _done(store, job) and time.monotonic() < deadline:
        now = (len(notes()), job.summary(indexes=False))
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > IDLE_LIMIT:
            unrecorded = {int(note[2]) for note in notes() if note[1] == "begun" and note[3] == NO_ATTEMPT}
            resent.update(_resend(store, job, messages, callback, unrecorded))
            since = time.monotonic()
        time.sleep(0.1)
    return resent


def _done(store: Store, job: Job) -> bool:
    record = store.get_job(job.manager.ref.key)
    return record.settled and not record.due and all(cell.final for _, cell in _callback_cells(store, record))


def _callback_cells(store: Store, record: JobRecord) -> list[tuple[str, Cell]]:
    """Return the decided latches with the cells of their callbacks."""
    decided = [name for name, latch in record.latches.items() if latch.decided_at is not None]
    return [(name, store.get_cell(record.ref, name, CALLBACK_ROW) or Cell()) for name in decided]


def _resend(
    store: Store, job: Job, messages: list[Published], callback: Signature[Any], unrecorded: set[int]
) -> Iterator[str]:
    """Send again the messages of rows and callbacks that no worker holds. Yield the reason for each."""
    record = store.get_job(job.manager.ref.key)
    for row, message in enumerate(messages):
        cell = store.get_cell(record.ref, "work", row) or Cell()
        if not (cell.open or cell.final):
            replace(message, headers={**message.headers, "retries": cell.delivery.retries}).redeliver()
            yield "unrecorded" if row in unrecorded else "lost"
    for name, cell in _callback_cells(store, record):
        if not (record.latches[name].due or cell.open or cell.final):
            Binding(record.ref, CALLBACK_ROW, name).bind(callback).apply_async(args=(job.id,))
            yield "lost"
