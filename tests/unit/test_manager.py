"""The interface of managers and jobs: the order of parameters, use by several threads, timeouts."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from celery_statemanager import Job, Manager, State, SynchronizeTimeout, open_store
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.kit import PATIENCE

TIMES = 10_000


@pytest.fixture
def manager() -> Manager:
    return Manager.create(open_store("memory://"), "job", num_tasks=2, task_index=0, tags=("a",))


@pytest.fixture
def fast_thread_switching() -> Iterator[None]:
    """Switch between threads as often as possible."""
    default = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(default)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Manager.set_state, ["tag", "status", "message", "payload"]),
        (Manager.progress, ["tag", "done", "total", "message"]),
        (Manager.get_state, ["tag", "task_index"]),
        (Manager.list_states, ["tag", "task_index"]),
        (Manager.summary, ["tag", "indexes"]),
        (Manager.subscribe, ["tag", "task_index", "until_settled", "since"]),
        (Manager.synchronize, ["tag", "status", "timeout"]),
        (Job.summary, ["tag", "indexes"]),
        (Job.subscribe, ["tag", "task_index", "until_settled", "since"]),
        (Job.wait, ["timeout"]),
        (Job.cancel, ["reason"]),
    ],
)
def test_documented_parameters_are_positional_in_the_documented_order(
    method: Callable[..., object], expected: list[str]
) -> None:
    _, *given = inspect.signature(method).parameters.values()
    assert [each.name for each in given if each.kind is each.POSITIONAL_OR_KEYWORD] == expected


def test_a_uuid_is_a_job_id_and_a_run_token() -> None:
    store, job_id, run_token = open_store("memory://"), uuid4(), uuid4()
    created = Manager.create(store, job_id, num_tasks=1, run_token=run_token)
    assert (created.job_id, created.run_token) == (str(job_id), str(run_token))
    for names in ((job_id, run_token), (str(job_id), str(run_token))):
        assert Manager.open(store, names[0], run_token=names[1]).ref == created.ref


@pytest.mark.parametrize("job_id", [5, b"etl", 5.0, ["etl"]])
def test_a_job_id_of_another_type_is_rejected(job_id: Any) -> None:
    with pytest.raises(TypeError, match="job_id must be a string or a UUID, not"):
        Manager.create(open_store("memory://"), job_id, num_tasks=1)


READS: dict[str, Callable[[Manager], object]] = {
    "get_state": lambda manager: manager.get_state("a"),
    "get_state of a cell": lambda manager: manager.get_state("a", 0),
    "summary": lambda manager: manager.summary("a"),
    "list_states": lambda manager: manager.list_states("a"),
}


@pytest.mark.parametrize("tags", [("a",), None], ids=["planned", "without a plan"])
@pytest.mark.parametrize("read", READS)
def test_a_tag_without_written_cells_is_read_by_one_call(
    monkeypatch: pytest.MonkeyPatch, read: str, tags: tuple[str, ...] | None
) -> None:
    calls: list[str] = []
    store = FaultyStore(open_store("memory://"))
    manager = Manager.create(store, "job", num_tasks=2, tags=tags)
    calling = store.calling
    monkeypatch.setattr(store, "calling", lambda method, call: (calls.append(method), calling(method, call))[1])
    READS[read](manager)
    assert len(calls) == 1


def test_a_written_unplanned_tag_is_read_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    store = FaultyStore(open_store("memory://"))
    manager = Manager.create(store, "job", num_tasks=1, task_index=0, tags=("planned",))
    manager.set_state("a", 5)
    calling = store.calling
    monkeypatch.setattr(store, "calling", lambda method, call: (calls.append(method), calling(method, call))[1])
    for read in READS.values():
        read(manager)
    assert len(calls) == len(READS)


def test_an_error_names_only_as_many_tags_as_fit() -> None:
    manager = Manager.create(open_store("memory://"), "job", num_tasks=1, tags=[f"tag-{n}" for n in range(500)])
    with pytest.raises(ValueError, match=r"'tag-0', 'tag-1', .* and 490 more") as caught:
        manager.get_state("typo")
    assert len(str(caught.value)) < 400


@pytest.mark.usefixtures("fast_thread_switching")
def test_a_manager_may_be_closed_while_another_thread_subscribes(manager: Manager) -> None:
    subscribed = threading.Event()
    errors: list[BaseException] = []

    def subscribe() -> None:
        kept = [manager.subscribe() for _ in range(TIMES)]
        subscribed.set()
        kept.clear()

    def close() -> None:
        try:
            while not subscribed.is_set():
                manager.close()
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=each) for each in (subscribe, close, close)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []


@pytest.mark.parametrize("timeout", [True, "5", b"5", [5], float("nan")])
def test_an_invalid_timeout_is_rejected(manager: Manager, timeout: float) -> None:
    with manager.subscribe() as events:
        for wait in (lambda: manager.synchronize("a", 1, timeout), lambda: events.get(timeout)):
            with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds or None, not"):
                wait()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400], ids=["inf", "1e300", "10**400"])
def test_a_very_large_timeout_is_infinite(manager: Manager, timeout: float) -> None:
    with manager.subscribe() as events:
        manager.set_state("a", 5)
        assert events.get(timeout) is not None
        waiter = threading.Thread(target=manager.synchronize, args=("a", 5, timeout))
        waiter.start()
        Manager.open(manager.store, "job", task_index=1).set_state("a", 5)
        waiter.join(PATIENCE)
        assert not waiter.is_alive()


def test_a_negative_timeout_still_checks_once(manager: Manager) -> None:
    with pytest.raises(SynchronizeTimeout) as caught:
        manager.synchronize("a", 5, timeout=-1)
    assert caught.value.missing == "0-1"
    with manager.subscribe() as events:
        assert events.get(-1) is None


def test_a_state_is_hashable(manager: Manager) -> None:
    written = manager.set_state("a", 5, payload={"rows": 3})
    assert {written, manager.get_state("a", 0)} == {written}
    assert len({written, State("job", 1, "a")}) == 2


def test_a_status_is_an_int_whether_written_or_not(manager: Manager) -> None:
    assert type(manager.get_state("a", 0).status) is type(manager.set_state("a", 0).status) is int
