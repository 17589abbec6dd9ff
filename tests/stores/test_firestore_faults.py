"""The Firestore store when calls are lost or the server is unavailable."""

from __future__ import annotations

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
from emulator import running
from firestore_kit import Spy

from celery_statemanager import JobNotFound, open_store
from celery_statemanager.records import Cancellation, Delivery, Write
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.testing import contract_outbox as outbox
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
]


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> int:
    """Return how often each operation loses its response, before and after it is applied."""
    return 200 if request.config.getoption("--firestore") or request.config.getoption("--full") else 8


@pytest.fixture
def store(address: FirestoreAddress, spy: Spy) -> Iterator[FirestoreStore]:
    with spy.store(address) as store:
        yield store


NO_SETS = dict.fromkeys(("failed_indexes", "running_indexes", "missing_indexes", "not_run_indexes", "stalled_indexes"))

Arm = Callable[[], None]


def lose_commits(spy: Spy, when: str, run: int) -> None:
    """Lose one to three of the next commits, before or after they are applied; sometimes skip the first."""
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


def begin_again(grid: Grid, run: int, arm: Arm) -> None:
    grid.run("r", run, FAILED)
    arm()
    cell = grid.begin("r", run, owner="w", delivery=Delivery(0, 0, 1)).cell
    assert (cell, cell.attempt, cell.version) == (grid.cell("r", run), 2, 3)


def end(grid: Grid, run: int, arm: Arm) -> None:
    grid.begin("e", run, owner="w")
    arm()
    cell = grid.write("e", run, FINISHED, attempt=1, ends_attempt=True).cell
    assert (cell, cell.final, cell.version) == (grid.cell("e", run), True, 2)


def complete(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"complete {run}")
    arm()
    assert set(made.write("a", 0, FINISHED).decided) == {"success", "settled"}
    assert (made.cell("a", 0).version, made.decided) == (1, {"success", "settled"})
    assert made.job.revision == 2


def fail(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 2, ("a", "b"), job_id=f"fail {run}")
    arm()
    assert made.write("a", 0, FAILED, block_later_stages=True).decided == ("failure",)
    assert [state.version for state in made.states()] == [1, 1]
    summary = made.manager().summary(indexes=False)
    assert (summary.failed, summary.not_run) == (1, 1)


def cancel(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"cancel {run}")
    job = made.job
    arm()
    decided = grid.store.update_job(replace(job, cancelled=Cancellation("enough", 1)))
    assert decided == ("settled",)
    assert (made.decided, made.job.revision) == ({"settled"}, 3)


def delete(grid: Grid, run: int, arm: Arm) -> None:
    made = Grid.create(grid.store, 1, ("a",), job_id=f"delete {run}")
    job = made.job
    arm()
    assert grid.store.delete_job(job) is True
    with pytest.raises(JobNotFound):
        grid.store.get_job(job.key)


def renew(grid: Grid, run: int, arm: Arm) -> None:
    arm()
    grid.store.put_worker("w", f"body {run}", 30)
    stored = grid.store.get_worker("w")
    assert stored is not None
    assert stored.body == f"body {run}"


def accept(grid: Grid, run: int, arm: Arm) -> None:
    job, data = outbox.draft(job_id=f"accept {run}"), bytes(2_000_000)
    arm()
    grid.store.add_block(job.ref, 0, data, 60)
    arm()
    assert grid.store.create_job(job).revision == 1
    assert grid.store.get_block(job.ref, 2) == (0, data)


def claim(grid: Grid, run: int, arm: Arm) -> None:
    made = outbox.create(grid.store, 8, max_in_flight=3, job_id=f"claim {run}")
    arm()
    assert str(outbox.claim(made, "p", 2).rows) == "0-1"
    arm()
    assert str(outbox.claim(made, "q").rows) == "2"
    made.begin("a", 0)
    arm()
    assert str(made.end("a", 0, publisher="w").claimed) == "3"
    assert {name: str(each.rows) for name, each in outbox.state(made).claims.items()} == {
        "p": "0-1",
        "q": "2",
        "w": "3",
    }


def next_stage(grid: Grid, run: int, arm: Arm) -> None:
    made = outbox.create(grid.store, 3, ("a", "b"), job_id=f"stage {run}")
    outbox.claim(made)
    made.begin("a", 1)
    arm()
    assert str(made.end("a", 1, publisher="w", next_is_due=True, value=str(run)).claimed) == "1"
    assert str(outbox.state(made).claims["w"].rows) == "1"
    assert grid.store.get_value(made.ref, 1) == str(run)


def send_back(grid: Grid, run: int, arm: Arm) -> None:
    made = outbox.create(grid.store, 3, max_in_flight=3, job_id=f"back {run}")
    outbox.claim(made)
    arm()
    cell = grid.store.write(made.ref, Write.sent_back("a", 1, "why", attempt=0)).cell
    assert (cell.version, cell.delivery) == (1, Delivery(1))
    arm()
    assert str(outbox.claim(made, "p").again) == "1"
    assert not outbox.state(made).returned


OPERATIONS = [
    *(create, first_write, next_write, begin, begin_again, end, complete, fail, cancel, delete, renew),
    *(accept, claim, next_stage, send_back),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_whose_response_is_lost_is_applied_exactly_once(
    store: FirestoreStore, spy: Spy, runs: int, operation: Any, when: str
) -> None:
    grid = Grid.create(store, 1_000, ("a", "b"), job_id="faults")
    for run in range(runs):
        operation(grid, run, lambda run=run: lose_commits(spy, when, run))
    assert spy.lost >= runs // 2
    spy.fault = lambda method, request: None
    counted, listed = (replace(grid.manager().summary(indexes=each), **NO_SETS) for each in (False, True))
    assert counted == listed, "tallies must count each write exactly once"


def test_a_write_is_recognised_after_many_later_ones(
    address: FirestoreAddress, store: FirestoreStore, spy: Spy
) -> None:
    grid = Grid.create(store, 1, ("a",))
    with FirestoreStore(address) as other:
        elsewhere = grid.seen_by(other)
        lost = iter([("after", grpc.StatusCode.UNAVAILABLE)])

        def lose(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
            if method == "Commit":
                return next(lost, None)
            for status in range(10, 30):  # while this process reads the cell after the lost answer
                elsewhere.write("a", 0, status)
            return None

        spy.fault = lose
        assert grid.write("a", 0, 5).cell.version == 1
        assert spy.lost == 1
        spy.fault = lambda method, request: None
    assert grid.cell("a", 0).version == 1 + 20


@pytest.mark.timeout(300)
def test_writers_that_lose_calls_leave_exact_versions_and_one_decision(address: FirestoreAddress, runs: int) -> None:
    for _ in range(runs // 4):
        job_id = uuid.uuid4().hex
        with Spy().store(address) as reliable:
            grid = Grid.create(reliable, 12, ("a",), job_id=job_id)
            decided: list[str] = []
            threads = [threading.Thread(target=_finish_rows, args=(address, grid, part, decided)) for part in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            assert sorted(decided) == ["settled", "success"]
            assert {state.version for state in grid.states("a")} == {6}
            assert reliable.get_cell(grid.ref, "shared", 0) is not None
            assert grid.cell("shared", 0).version == 12
            assert grid.manager().summary(indexes=False).finished == 12


def _finish_rows(address: FirestoreAddress, grid: Grid, part: int, decided: list[str]) -> None:
    spy, rng = Spy(), random.Random()

    def fault(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        return (rng.choice(["before", "after"]), rng.choice(CODES)) if rng.random() < 0.3 else None

    spy.fault = fault
    with spy.store(address, timeout=30) as store:
        mine = grid.seen_by(store)
        for row in range(part, 12, 4):
            mine.begin("a", row, owner=f"w{part}")
            for status in range(2, 6):
                mine.write("a", row, status, attempt=1)
            mine.write("shared", 0, 5)
            decided += mine.write("a", row, FINISHED, attempt=1, ends_attempt=True).decided


@pytest.mark.firestore
def test_a_subscription_survives_an_outage_at_low_cost(
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
                assert events.get(30) is None  # the restarted emulator has no data
                assert events.closed
            again = Grid.create(store, 3)
            with again.manager().subscribe() as events:
                again.write("a", 1, 6)
                event = events.get(20)
                assert event is not None
                assert (event.state.task_index, event.state.status) == (1, 6)
