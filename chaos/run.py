"""A round: a job, trouble while it runs, peace until it has settled, the verdict."""

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
from chaos import trouble, verdict
from chaos.crew import Crew
from chaos.places import Place
from chaos.verdict import UNASKED

ROWS = 16
PATIENCE = 60.0
LAST = 5.0
"""Seconds in which a subscriber must have seen the end of a job that has settled."""

STUCK = 10.0
"""Seconds without any change after which messages that nobody holds count as stuck in the broker or lost by it."""


@dataclass
class Outcome:
    """What became of a round.

    Attributes:
        stuck: messages that were stuck in the broker or lost by it, and sent again by hand.
        untold: the same of bodies that ran while the store was away, in a worker that was killed before it was back.
    """

    events: list[str]
    seconds: float
    stuck: int
    untold: int
    findings: list[str]


def play(place: Place, crew: Crew, seed: str) -> Outcome:
    """Play one round. Raises: AssertionError – workers that do not start."""
    from chaos import app  # reads the environment of the place

    rng = random.Random(seed)
    kinds = [
        rng.choice(["sturdy", "sturdy", "fragile", "fickle", *["doomed"] * rng.randint(0, 1)]) for _ in range(ROWS)
    ]
    members = [getattr(app, kind).s(rng.uniform(0.2, 1.5)) for kind in kinds]
    events = trouble.draw(rng, place, crew)
    crew.muster()
    began = time.monotonic()
    done = {f"on_{latch}": app.finish.s() for latch in ("success", "failure", "settled")}
    with published(app.app) as messages:
        job = app.states.submit(members, **done)
    with _watched(job) as states:
        told = trouble.happen(events)
        crew.muster()
        resent = _wait(app.states.store, job, messages, app.finish.s(), lambda: app.notes(job.id))
    limit = app.states.settings.max_lost
    found = verdict.findings(app.states.store, job, kinds, app.notes(job.id), limit)
    found += verdict.of_stream(app.states.store, job, states)
    found += [f"left behind: {process}" for process in crew.left_behind()]
    return Outcome(told, time.monotonic() - began, resent["stuck"], resent["untold"], found)


@contextmanager
def _watched(job: Job) -> Iterator[list[State]]:
    """Note what a subscriber sees until the job has settled, or the block ends."""
    seen: list[State] = []
    with job.subscribe(until_settled=True) as events:
        reader = threading.Thread(target=lambda: seen.extend(event.state for event in events), daemon=True)
        reader.start()
        yield seen
        reader.join(LAST)


def _wait(
    store: Store, job: Job, messages: list[Published], callback: Signature[Any], notes: Callable[[], list[list[str]]]
) -> Counter[str]:
    """Wait until the job and its callbacks are done; send again what nobody has any more. Count why."""
    resent: Counter[str] = Counter()
    deadline, last, since = time.monotonic() + PATIENCE, None, time.monotonic()
    while not _done(store, job) and time.monotonic() < deadline:
        now = (len(notes()), job.summary(indexes=False))
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STUCK:
            untold = {int(note[2]) for note in notes() if note[1] == "begun" and note[3] == UNASKED}
            resent.update(_resend(store, job, messages, callback, untold))
            since = time.monotonic()
        time.sleep(0.1)
    return resent


def _done(store: Store, job: Job) -> bool:
    record = store.get_job(job.manager.ref.key)
    return record.settled and not record.due and all(cell.final for _, cell in _callbacks(store, record))


def _callbacks(store: Store, record: JobRecord) -> list[tuple[str, Cell]]:
    """Give the cells of the callbacks that are to run, by latch."""
    decided = [name for name, latch in record.latches.items() if latch.decided_at is not None]
    return [(name, store.get_cell(record.ref, name, CALLBACK_ROW) or Cell()) for name in decided]


def _resend(
    store: Store, job: Job, messages: list[Published], callback: Signature[Any], untold: set[int]
) -> Iterator[str]:
    """Send what no worker has any more: the first message of a row, its retry, or a callback's. Give the reasons."""
    record = store.get_job(job.manager.ref.key)
    for row, message in enumerate(messages):
        cell = store.get_cell(record.ref, "work", row) or Cell()
        if not (cell.open or cell.final):
            replace(message, headers={**message.headers, "retries": cell.delivery.retries}).redeliver()
            yield "untold" if row in untold else "stuck"
    for name, cell in _callbacks(store, record):
        if not (record.latches[name].due or cell.open or cell.final):
            Binding(record.ref, CALLBACK_ROW, name).bind(callback).apply_async(args=(job.id,))
            yield "stuck"
