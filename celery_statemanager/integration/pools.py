"""The pool of this worker: whether it runs bodies concurrently, and which time limits have no effect."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from typing import Any

from celery.concurrency import get_implementation

from celery_statemanager.integration import requests

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pool:
    """The properties of a pool.

    Attributes:
        one_body: whether each of its processes runs one body at a time.
        known: whether a thread, or a greenlet, runs one body at a time, as in every pool of Celery.
        in_main_loop: whether bodies run in the worker's main loop, which then receives no messages.
        green: whether new greenlets inherit the context of those that start them.
        lacks: the time limits that have no effect, as text; empty if both work or it is unknown.
    """

    name: str
    module: str = ""
    one_body: bool = False
    known: bool = True
    in_main_loop: bool = False
    green: bool = False
    lacks: str = ""

    @property
    def limits(self) -> str:
        """The sentence that ``why-state`` adds to a running task."""
        return f"{self.lacks} have no effect in the {self.name} pool" if self.lacks else ""


PREFORK = Pool("prefork", "celery.concurrency.prefork", one_body=True)
POOLS = (
    PREFORK,
    Pool("solo", "celery.concurrency.solo", one_body=True, in_main_loop=True, lacks="soft and hard time limits"),
    Pool("threads", "celery.concurrency.thread", lacks="soft and hard time limits"),
    Pool("gevent", "celery.concurrency.gevent", green=True, lacks="soft time limits"),
    Pool("eventlet", "celery.concurrency.eventlet", green=True, lacks="soft and hard time limits"),
)
NO_POOL = Pool("")

_current = NO_POOL
_default_time_limit: float | None = None


def use(worker: Any) -> None:
    """Record the pool of a worker that starts in this process."""
    global _current, _default_time_limit
    _current, _default_time_limit = pool_of(worker.pool_cls), worker.time_limit


def forks(pool_cls: Any) -> bool:
    """Return whether a pool creates child processes; also one derived from prefork that runs tasks in its own way."""
    found: Any = get_implementation(pool_cls)
    return any(base.__module__ == PREFORK.module for base in getattr(found, "__mro__", ()))


def warn_if_unknown() -> None:
    """Log a warning if the worker's pool is not one of Celery's."""
    if not _current.known:
        logger.warning(
            "the pool %s is not one of %s: this package is not tested with it. If it runs several tasks in one thread, "
            "states are written only where the context (contextvars) identifies the running task; other states are not "
            "written, and their tasks may end LOST. Use another pool, or check the states of a test job",
            _current.name,
            ", ".join(each.name for each in POOLS),
        )


def leave() -> None:
    """Forget the pool of a worker that has ended in this process."""
    global _current, _default_time_limit
    _current, _default_time_limit = NO_POOL, None


def processes(pool: Any) -> list[int]:
    """Return the ids of the processes that run the tasks of a worker's pool, this process included."""
    return [os.getpid(), *(pool.info or {}).get("processes", ())]


def current() -> Pool:
    """Return the pool of the worker in this process, or of the worker whose child it is; else ``NO_POOL``."""
    return PREFORK if _current is NO_POOL and requests.is_child() else _current


def default_time_limit() -> float | None:
    """Return the hard time limit of the worker in this process, in seconds."""
    return _default_time_limit


def pool_of(pool_cls: Any) -> Pool:
    """Return the pool for a class or its name.

    A class derived from a pool of Celery counts as that pool unless it overrides how tasks are run.
    """
    found: Any = get_implementation(pool_cls)
    modules = [base.__module__ for base in getattr(found, "__mro__", ())]
    for each in POOLS:
        if each.module in modules:
            original: Any = importlib.import_module(each.module).TaskPool
            if found.on_apply is original.on_apply:
                return each
    return Pool(f"{found.__module__}.{found.__qualname__}", known=False, in_main_loop=True)
