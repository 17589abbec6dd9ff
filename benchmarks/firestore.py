"""One ``set_state`` on the Firestore emulator, against a transaction that reads and writes a document."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from benchmarks.harness import Figure, Scale, alternate
from benchmarks.writes import MESSAGE, writing
from celery_statemanager import open_store
from tests.emulator import running

PROJECT = "benchmarks"


def measure(scale: Scale) -> Iterator[Figure]:
    """Start an emulator and compare; that a write is one RPC is a test, ``test_firestore_costs``."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as emulator:
        os.environ["FIRESTORE_EMULATOR_HOST"] = emulator.host
        with open_store(f"firestore://{PROJECT}", timeout=30.0) as store:
            calls = {"peer": _transaction(), "ours": writing(store)}
            found = alternate(calls, scale(2, 100, 500))
    ours, peer = found["ours"] * 1e3, found["peer"] * 1e3
    yield Figure("Firestore set_state (emulator)", "@transactional get + set", ours, peer, "ms", 0.3)


def _transaction() -> Callable[[], object]:
    from google.cloud import firestore

    client = firestore.Client(project=PROJECT)
    document = client.document("bare/document")
    numbers = count()

    @firestore.transactional
    def get_and_set(transaction: firestore.Transaction) -> None:
        found = document.get(transaction=transaction).to_dict() or {"version": 0}
        state = {"status": next(numbers) % 90, "message": MESSAGE, "version": found["version"] + 1}
        transaction.set(document, state)

    return lambda: get_and_set(client.transaction())
