"""The Firestore store when calls are lost, the server is away or what is asked for cannot be."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from emulator import free_port, running
from firestore_kit import Spy

from celery_statemanager import ConfigurationError, JobNotFound, Manager, StoreError, StoreUnavailable, open_store
from celery_statemanager.records import Cancellation
from celery_statemanager.stores.firestore import Address, FirestoreStore
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
]
RUNS = int(os.environ.get("FAULT_RUNS", "8"))
"""How often each operation loses its answer, each way."""


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def address(firestore_emulator: str) -> Address:
    return Address(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def store(address: Address, spy: Spy) -> Iterator[FirestoreStore]:
    with spy.store(address) as store:
        yield store


Arm = Callable[[], None]


def lose_commits(spy: Spy, when: str, run: int) -> None:
    """Lose one to three of the next commits, before they are done or after; sometimes not the first."""
    skipped, left, code = [run // 3 % 2], [1 + run % 3], CODES[run % len(CODES)]

    def fault(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        if method != "Commit" or not left[0]:
            return None
        if skipped[0]:
            skipped[0] -= 1
            return None
        left[0] -= 1
        return when, code

    spy.fault = fault


def create(grid: Grid, run: int, arm: Arm) -> None:
    arm()
    made = Grid.create(grid.store, 2, ("a",), job_id=f"job {run}")
    assert (made.job.revision, made.job.num_tasks) == (1, 2)


def first_write(grid: Grid, run: int, arm: Arm) -> None:
    arm()
    assert grid.write("a", run, 5).cell.version == 1
    assert grid.cell("a", run).version == 1


def next_write(grid: Grid, run: int, arm: Arm) -> None:
    before = grid.cell("n", 0)
    arm()
    cell = grid.write("n", 0, 5, message=str(run)).cell
    assert cell == grid.cell("n", 0)
    assert cell.version == before.version + 1


def begin(grid: Grid, run: int, arm: Arm) -> None:
    arm()
    cell = grid.begin("b", run, owner="w").cell
    assert (cell, cell.attempt, cell.version) == (grid.cell("b", run), 1, 1)


def complete(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"complete {run}")
    arm()
    assert set(made.write("a", 0, FINISHED).decided) == {"success", "settled"}
    assert (made.cell("a", 0).version, made.fallen) == (1, {"success", "settled"})
    assert made.job.revision == 2


def fail(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 2, ("a", "b"), job_id=f"fail {run}")
    arm()
    assert made.write("a", 0, FAILED, cascades=True).decided == ("failure",)
    assert [state.version for state in made.states()] == [1, 1]
    assert made.manager().summary(indexes=False).failed == 2


def cancel(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"cancel {run}")
    job = made.job
    arm()
    decided = grid.store.update_job(replace(job, cancelled=Cancellation("enough", 1)))
    assert decided == ("settled",)
    assert (made.fallen, made.job.revision) == ({"settled"}, 3)


def delete(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"delete {run}")
    job = made.job
    arm()
    assert grid.store.delete_job(job) is True
    with pytest.raises(JobNotFound):
        grid.store.get_job(job.key)


OPERATIONS = [create, first_write, next_write, begin, complete, fail, cancel, delete]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_whose_answer_is_lost_is_done_exactly_once(
    store: FirestoreStore, spy: Spy, operation: Any, when: str
) -> None:
    grid = Grid.create(store, 1_000, ("a", "b"), job_id="faults")
    for run in range(RUNS):
        operation(grid, run, lambda run=run: lose_commits(spy, when, run))


@pytest.mark.timeout(300)
def test_many_writers_that_lose_calls_leave_exact_versions_and_one_claim(address: Address) -> None:
    rounds = max(2, RUNS // 4)
    for _ in range(rounds):
        job_id = uuid.uuid4().hex
        with Spy().store(address) as quiet:
            grid = Grid.create(quiet, 12, ("a",), job_id=job_id)
            decided: list[str] = []
            threads = [threading.Thread(target=_finish_rows, args=(address, grid, part, decided)) for part in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            assert sorted(decided) == ["settled", "success"]
            assert {state.version for state in grid.states("a")} == {6}
            assert quiet.get_cell(grid.ref, "shared", 0) is not None
            assert grid.cell("shared", 0).version == 12
            assert grid.manager().summary(indexes=False).finished == 12


def _finish_rows(address: Address, grid: Grid, part: int, decided: list[str]) -> None:
    spy, dice = Spy(), random.Random()

    def fault(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        return (dice.choice(["before", "after"]), dice.choice(CODES)) if dice.random() < 0.3 else None

    spy.fault = fault
    with spy.store(address, timeout=30) as store:
        mine = grid.seen_by(store)
        for row in range(part, 12, 4):
            mine.begin("a", row, owner=f"w{part}")
            for status in range(2, 6):
                mine.write("a", row, status, attempt=1)
            mine.write("shared", 0, 5)
            decided += mine.write("a", row, FINISHED, attempt=1, closes=True).decided


def test_a_dead_server_costs_no_more_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    with open_store("firestore://test-down", timeout=1.0) as store:
        for use in (
            lambda: Manager.create(store, "job", num_tasks=1),
            lambda: Manager.open(store, "job"),
            lambda: store.put_worker("w", "", 1),
            store.now,
        ):
            since = time.monotonic()
            with pytest.raises(StoreUnavailable, match="gave up after 1 s") as down:
                use()
            assert time.monotonic() - since < 3
            assert down.value.__cause__ is not None


def test_no_credentials_are_told_with_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    since = time.monotonic()
    with open_store("firestore://some-project") as store, pytest.raises(StoreError, match="gcloud auth"):
        Manager.open(store, "job")
    assert time.monotonic() - since < 10


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("firestore://", "project"),
        ("firestore://BadProject", "lower-case"),
        ("firestore://p/a/b", "collection"),
        ("firestore://p/__x__", "collection"),
        ("firestore://p?database=BAD", "database"),
        ("firestore://p?databse=x", "option"),
    ],
)
def test_a_bad_url_is_told_without_connecting(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        open_store(url)


def test_urls_name_collection_and_database() -> None:
    assert repr(open_store("firestore://my-project")) == "<FirestoreStore firestore://my-project/jobs>"
    assert repr(open_store("firestore://my-project/etl?database=other")) == (
        "<FirestoreStore firestore://my-project/etl?database=other>"
    )


def test_what_is_too_large_for_a_document_is_told_before_it_is_sent(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 1)
    spy.clear()
    with pytest.raises(StoreError, match="Firestore allows 1000000"):
        grid.write("a", 0, 5, message="x" * 1_000_001)
    with pytest.raises(StoreError, match="Firestore allows 1500"):
        grid.write("x" * 1_501, 0, 5)
    assert spy.calls["Commit"] == 0


@pytest.mark.firestore
def test_a_subscription_goes_through_an_outage_told_and_at_next_to_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    with running(tmp_path) as emulator:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator.host)
        with open_store("firestore://test-outage", timeout=10.0) as store:
            grid = Grid.create(store, 3)
            with grid.manager().subscribe() as events:
                grid.write("a", 0, 5)
                assert events.get(20) is not None
                threads, cpu = threading.active_count(), time.process_time()
                store._connection.timeout = 1.0
                emulator.stop()
                assert events.get(8) is None
                used, more = time.process_time() - cpu, threading.active_count() - threads
                record_property("outage", f"{used:.2f} s of CPU, {more} more threads")
                assert (events.connected, events.closed) == (False, False)
                assert used < 2
                assert more <= 2
                store._connection.timeout = 10.0
                emulator.start()
                assert events.get(30) is None  # the emulator has forgotten the job
                assert events.closed
            again = Grid.create(store, 3)
            with again.manager().subscribe() as events:
                again.write("a", 1, 6)
                event = events.get(20)
                assert event is not None
                assert (event.state.task_index, event.state.status) == (1, 6)
