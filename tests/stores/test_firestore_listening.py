"""Changes received by the Firestore store: large streams, broken streams, and polling."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, InjectedError, Spy, listening, wait_until_streaming
from google.cloud.firestore_v1.types import firestore

from celery_statemanager import StoreUnavailable
from celery_statemanager.models import Scope
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore, poll, requests
from celery_statemanager.stores.firestore.client import STREAM_TRIES
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until

ROWS = 5_000
AT_ONCE = 400
CURRENT = firestore.TargetChange.TargetChangeType.CURRENT


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


def fill(store: FirestoreStore, grid: Grid) -> None:
    """Copy the first row of a column to all others, many in each commit."""
    grid.write("a", 0, 5)
    path = "jobs/job/states/a:"
    fields = Documents(store).get(f"{path}0")
    for first in range(1, ROWS, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, ROWS))
        name = f"{store._connection.address.root}/{path}"
        writes = [requests.put(f"{name}{row}", {**fields, "taskID": row}, None, ["timestamp"]) for row in rows]
        store._database.commit(writes, store._database.deadline())


@pytest.mark.firestore
def test_five_thousand_states_arrive_at_a_bounded_cost(store: FirestoreStore, record_property: Any) -> None:
    grid = Grid.create(store, ROWS, ("a",))
    watch = store.watch(grid.ref, Scope("a"))
    cpu = time.process_time()
    fill(store, grid)
    assert len(read_until(watch, lambda batch: len(batch.states) == ROWS).states) == ROWS
    threads = threading.active_count()
    for row in range(10):
        grid.write("a", row, 6)
    batch = read_until(
        watch, lambda batch: {(row, 6) for row in range(10)} <= {(s.task_index, s.status) for s in batch.states}
    )
    assert len(batch.states) == 10, "unchanged states must not be delivered again, although the emulator sends them"
    used = time.process_time() - cpu
    record_property("listener", f"{used:.1f} s of CPU")
    assert used < 20
    assert threading.active_count() <= threads
    watch.close()


class Mismatch:
    """Remove the changes of one document from a stream and report the mismatch later, as Firestore would."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._missed = self._reported = False

    def __call__(self, messages: Any) -> Iterator[Any]:
        current = False
        for message in messages:
            if message.document_change.document.name.endswith(self._name):
                self._missed = current
                continue
            current = current or message.target_change.target_change_type == CURRENT
            if self._missed and not self._reported and message.HasField("document_change"):
                self._reported = True
                yield firestore.ListenResponse.pb()(filter={"target_id": 1, "count": 9})
            yield message


def test_a_subscription_loses_nothing_after_a_filter_mismatch(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 3, ("a",))
    spy.alter = Mismatch("a:1")
    with listening(grid.manager().subscribe()) as events:
        grid.write("a", 0, 4)
        assert events.get(PATIENCE) is not None
        grid.write("a", 1, 5)
        grid.write("a", 1, 6)
        grid.write("a", 2, 7)
        got = {}
        while got.get(1) != 2 or got.get(2) != 1:
            event = events.get(PATIENCE)
            assert event is not None, f"only {got} came"
            assert got.get(event.state.task_index, 0) < event.state.version
            got[event.state.task_index] = event.state.version
        assert spy.calls["Listen"] == 1


class Silence:
    """Withhold the later messages of the first stream, as a dead connection or a proxy would."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._silenced = False

    def __call__(self, messages: Any) -> Iterator[Any]:
        silent, self._silenced = not self._silenced, True
        for number, message in enumerate(messages):
            if not silent or number < self._after:
                yield message


@pytest.mark.parametrize(
    ("timings", "after"),
    [
        (Timings(first_silence=0.5, stream_check=0.1), 0),
        (Timings(first_silence=0.5, stream_check=0.1), 2),
        (Timings(silence=0.5, stream_check=0.1), 4),
    ],
)
def test_a_silent_stream_is_reopened_and_loses_nothing(store: FirestoreStore, spy: Spy, after: int) -> None:
    spy.alter = Silence(after)
    grid = Grid.create(store, 3, ("a",))
    with grid.manager().subscribe() as events:
        grid.write("a", 1, 5)
        event = events.get(PATIENCE)
        assert event is not None
        assert (event.state.task_index, event.state.status) == (1, 5)
        assert events.connected
    assert spy.calls["Listen"] > 1


class BrokenSnapshot:
    """Fail the first stream between the change of a document and the end of its snapshot."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._broken = False

    def __call__(self, messages: Any) -> Iterator[Any]:
        for message in messages:
            yield message
            if message.document_change.document.name.endswith(self._name) and not self._broken:
                self._broken = True
                raise InjectedError(grpc.StatusCode.UNAVAILABLE)


def test_a_stream_that_breaks_inside_a_snapshot_loses_nothing(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 3, ("a",))
    spy.alter = BrokenSnapshot("a:1")
    with listening(grid.manager().subscribe()) as events:
        grid.write("a", 1, 5)
        event = events.get(PATIENCE)
        assert event is not None
        assert (event.state.task_index, event.state.status) == (1, 5)
        assert spy.calls["Listen"] == 2


def test_a_watch_polls_when_streams_cannot_be_opened(store: FirestoreStore, spy: Spy) -> None:
    spy.fault = lambda method, request: ("before", grpc.StatusCode.UNIMPLEMENTED) if method == "Listen" else None
    grid = Grid.create(store, 3, ("a",))
    with grid.manager().subscribe() as events:
        assert events.get(0.5) is None
        grid.write("a", 1, 5)
        event = events.get(PATIENCE)
        assert event is not None
        assert (event.state.task_index, event.state.status) == (1, 5)
        assert events.connected
        grid.write("a", 1, 6)
        assert events.get(PATIENCE).state.status == 6
        assert spy.calls["Listen"] == STREAM_TRIES
        grid.delete()
        assert events.get(PATIENCE) is None
        assert events.closed


def test_a_store_that_has_read_a_stream_keeps_trying_streams(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 3, ("a",))
    watch = store.watch(grid.ref, Scope())
    wait_until_streaming(watch)
    grid.write("a", 1, 5)
    read_until(watch, lambda batch: bool(batch.states))
    watch.close()
    spy.fault = lambda method, request: ("before", grpc.StatusCode.UNAVAILABLE) if method == "Listen" else None
    for _ in range(STREAM_TRIES):
        watch = store.watch(grid.ref, Scope())
        with pytest.raises(StoreUnavailable):
            watch.read(PATIENCE)
    spy.fault = lambda method, request: None
    spy.clear()
    watch = store.watch(grid.ref, Scope())
    wait_until_streaming(watch)
    grid.write("a", 1, 6)
    read_until(watch, lambda batch: bool(batch.states))
    watch.close()
    assert spy.calls["Listen"] == 1


def test_polling_respects_its_read_limit(address: FirestoreAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = Timings(poll_every=0.01, polled_documents=10.0)
    with FirestoreStore(address, timeout=10.0, transport="rest", timings=timings) as store:
        grid = Grid.create(store, 3, ("a",))
        for row in range(3):
            grid.write("a", row, 5)
        watch = store.watch(grid.ref, Scope())
        reads: list[int] = []
        monkeypatch.setattr(poll.Poller, "_poll", recording(poll.Poller._poll, reads))
        began = time.monotonic()
        while len(reads) < 4:
            watch.read(0.1)
        assert sum(reads[:-1]) / 10.0 <= time.monotonic() - began
        watch.close()


def recording(poll_once: Any, reads: list[int]) -> Any:
    def poll_and_record(self: poll.Poller) -> int:
        reads.append(poll_once(self))
        return reads[-1]

    return poll_and_record
