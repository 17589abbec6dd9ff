"""The app of the figures that need workers, configured by the environment."""

from __future__ import annotations

import os
import threading
from functools import partial

import redis
from celery import Celery

from celery_statemanager import StatefulTask, StateManager

URL = os.environ["BENCHMARK_REDIS"]

app = Celery("benchmarks", broker=f"{URL}/0", backend=f"{URL}/1")
app.conf.update(
    statemanager_store_url=f"{URL}/2",
    worker_prefetch_multiplier=int(os.environ.get("BENCHMARK_PREFETCH", "4")),
    broker_connection_retry_on_startup=True,
)
states = StateManager(app) if os.environ.get("BENCHMARK_TRACKED", "yes") == "yes" else None
task = partial(app.task, shared=False)  # the module may be loaded again, for another server


@task
def with_result() -> None:
    """Do nothing, and keep the result: what a chord needs."""


@task(ignore_result=True)
def plain() -> None:
    """Do nothing."""


@task(base=StatefulTask, ignore_result=True, tag="work")
def tracked() -> None:
    """Do nothing in a job."""


@task(base=StatefulTask, ignore_result=True)  # as the callback of a job it runs once, however often it is published
def ended(*_: object) -> None:
    """Say that all have ended."""
    _client().rpush("ended", "x")


@task(ignore_result=True)
def plain_hold() -> None:
    """Stay until told to go."""
    _hold()


@task(base=StatefulTask, ignore_result=True, tag="work")
def tracked_hold() -> None:
    """Stay until told to go, in a job."""
    _hold()


_holding = 0
_counting = threading.Lock()
_let_go = threading.Event()


def _hold() -> None:
    global _holding  # noqa: PLW0603 - one process is one worker
    with _counting:
        _holding += 1
        first = _holding == 1
        if _holding % 100 == 0:
            _client().set("holding", _holding)
    if first:
        _client().blpop(["go"], timeout=120)
        _let_go.set()
    _let_go.wait(120)


def _client() -> redis.Redis:
    return redis.Redis.from_url(f"{URL}/3", socket_timeout=None)
