"""Which workers tell their store that they will fork."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from celery.worker import WorkController

from celery_statemanager import StateManager, open_store
from celery_statemanager.integration import requests
from celery_statemanager.testing import WrappedStore


class Told(WrappedStore):
    expects_forks = False

    def expect_forks(self) -> None:
        self.expects_forks = True


@pytest.mark.parametrize(
    ("pool", "forks"), [("prefork", True), ("processes", True), (TaskPool, True), ("threads", False), ("solo", False)]
)
def test_a_worker_that_forks_tells_its_store_before_it_does(
    pool: object, forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(requests.WORKER_ID, "")
    app = Celery("forking", broker="memory://", set_as_current=False)
    with open_store("memory://") as inner:
        states = StateManager(app)
        states.__dict__["store"] = told = Told(inner)
        WorkController(app=app, pool_cls=pool, concurrency=1)
        assert told.expects_forks is forks
