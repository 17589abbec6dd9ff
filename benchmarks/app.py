"""The Celery app of the benchmarks that need workers, configured by environment variables."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

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
task = partial(app.task, shared=False)  # the module is reloaded when the server changes


@task
def with_result() -> None:
    """Do nothing and store the result, as a chord requires."""


@task(ignore_result=True)
def plain() -> None:
    """Do nothing."""


@task(base=StatefulTask, ignore_result=True, tag="work")
def tracked() -> None:
    """Do nothing, as a member of a job."""


@task(bind=True)
def update_state(self: Any) -> None:
    """Write three progress states into the result backend."""
    for done in range(1, 4):
        self.update_state(state="PROGRESS", meta={"done": done, "total": 3})


@task(base=StatefulTask, bind=True, ignore_result=True, tag="work")
def tracked_progress(self: Any) -> None:
    """Write three progress states, as a member of a job."""
    for done in range(1, 4):
        self.state.set(10 * done)


@task(base=StatefulTask, ignore_result=True, tag="work")
def image(path: str) -> None:
    """Do nothing, with an argument."""


class TenantTask(StatefulTask):
    """Adds a header to each message, as projects with several tenants do."""

    def apply_async(self, *args: Any, headers: dict[str, Any] | None = None, **options: Any) -> Any:
        return super().apply_async(*args, headers={**(headers or {}), "tenant": "t-1"}, **options)


@task(base=TenantTask, ignore_result=True, tag="work")
def image_of_tenant(path: str) -> None:
    """Do nothing, with an argument."""


def _page(number: int) -> dict[str, Any]:
    """Return a small object."""
    return {"page": number, "words": ["alpha", "beta"]}


page = task(_page, name="benchmarks.app.page")
tracked_page = task(_page, name="benchmarks.app.tracked_page", base=StatefulTask, ignore_result=True, tag="work")


@task(base=StatefulTask)
def collected(results: list[Any], expected: int) -> int:
    """Signal that the body of a chord has its results."""
    assert [each["page"] for each in results] == list(range(expected))
    _client().rpush("ended", "x")
    return len(results)


@task(base=StatefulTask, ignore_result=True)  # runs once per job, even if its message is published twice
def ended(*_: object) -> None:
    """Signal that all tasks have ended."""
    _client().rpush("ended", "x")


@task(ignore_result=True)
def plain_hold() -> None:
    """Block until the benchmark releases the task."""
    _hold()


@task(base=StatefulTask, ignore_result=True, tag="work")
def tracked_hold() -> None:
    """Block until the benchmark releases the task, as a member of a job."""
    _hold()


_holding = 0
_counting = threading.Lock()
_released = threading.Event()


def _hold() -> None:
    global _holding  # noqa: PLW0603 - all tasks of a worker share it
    with _counting:
        _holding += 1
        first = _holding == 1
        if _holding % 100 == 0:
            _client().set("holding", _holding)
    if first:
        _client().blpop(["release"], timeout=120)
        _released.set()
    _released.wait(120)


def _client() -> redis.Redis:
    return redis.Redis.from_url(f"{URL}/3", socket_timeout=None)
