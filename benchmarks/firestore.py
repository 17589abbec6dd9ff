"""Firestore on the emulator: a write compared with a transaction on one document, and the number of calls."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.filling import create_filled_job
from benchmarks.harness import Figure, Scale, alternate
from benchmarks.sizes import READS
from benchmarks.writes import MESSAGE, state_writer
from celery_statemanager import open_store
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from tests.emulator import running
from tests.firestore_kit import Spy

PROJECT = "benchmarks"
SMALL = 100


def measure(scale: Scale) -> Iterator[Figure]:
    """Start an emulator, compare writes and count calls."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as emulator:
        os.environ["FIRESTORE_EMULATOR_HOST"] = emulator.host
        with open_store(f"firestore://{PROJECT}", timeout=30.0) as store:
            calls = {"peer": _transaction(), "ours": state_writer(store)}
            rounds = scale(2, 500, 1_500)
            alternate(calls, rounds)  # warm-up: Java compiles the emulator while it runs
            medians = alternate(calls, rounds)
        ours, peer = medians["ours"] * 1e3, medians["peer"] * 1e3
        yield Figure("Firestore set_state (emulator)", "@transactional get + set", ours, peer, "ms", 0.3)
        spy = Spy()
        with spy.store(FirestoreAddress(PROJECT), timeout=30.0) as store:
            write = state_writer(store, "counted")
            yield Figure("Firestore set_state", "-", _count_calls(spy, write), None, "calls", 1, "alone")
            yield from _read_figures(spy, store, [SMALL, *scale((200,), (1_000,), (1_000, 10_000))])


def _read_figures(spy: Spy, store: FirestoreStore, sizes: list[int]) -> Iterator[Figure]:
    """Count the calls of each read, by number of tasks, in jobs with every cell written."""
    managers = {size: create_filled_job(store, size) for size in sizes}
    for what, read in READS.items():
        counted = {size: _count_calls(spy, partial(read, manager)) for size, manager in managers.items()}
        for size in sizes[1:]:
            at = f"Firestore {what} at {size:,} tasks"
            yield Figure(at, f"itself at {SMALL}", counted[size], counted[SMALL], "calls", 1)


def _count_calls(spy: Spy, call: Callable[[], object]) -> int:
    call()
    spy.clear()
    call()
    return spy.total


def _transaction() -> Callable[[], object]:
    from google.cloud import firestore

    client = firestore.Client(project=PROJECT)
    document = client.document("bare/document")
    numbers = count()

    @firestore.transactional
    def get_and_set(transaction: firestore.Transaction) -> None:
        fields = document.get(transaction=transaction).to_dict() or {"version": 0}
        state = {"status": next(numbers) % 90, "message": MESSAGE, "version": fields["version"] + 1}
        transaction.set(document, state)

    return lambda: get_and_set(client.transaction())
