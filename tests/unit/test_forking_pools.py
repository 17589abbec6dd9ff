"""Workers with a forking pool notify their store before they fork."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from celery.worker import WorkController

from celery_statemanager import StateManager, open_store
from celery_statemanager.integration import requests
from celery_statemanager.testing import WrappedStore


class RecordingStore(WrappedStore):
    """Record whether forks are expected."""

    expects_forks = False

    def expect_forks(self) -> None:
        self.expects_forks = True


@pytest.mark.parametrize(
    ("pool", "forks"), [("prefork", True), ("processes", True), (TaskPool, True), ("threads", False), ("solo", False)]
)
def test_a_worker_with_a_forking_pool_notifies_its_store(
    pool: object, forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(requests.WORKER_ID, "")
    monkeypatch.setattr("celery._state._task_join_will_block", False)  # each WorkController sets it
    app = Celery("forking", broker="memory://", set_as_current=False)
    with open_store("memory://") as inner:
        states = StateManager(app)
        states.__dict__["store"] = store = RecordingStore(inner)
        WorkController(app=app, pool_cls=pool, concurrency=1)
        assert store.expects_forks is forks
