"""The matrix of outcomes: how a cell ends, by what happens to its task and by pool.

The rows (``matrix_rows``) are tested by ``test_matrix`` and shown in docs/internals/celery.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import celery
from workers import SPAWN

from celery_statemanager import Status

POOLS = ("prefork", "threads", "solo", "gevent", "eager")
WORKERS = "prefork threads solo gevent"
BEFORE_5_7 = tuple(map(int, celery.__version__.split(".")[:2])) < (5, 7)


class Ends(NamedTuple):
    """The expected end of a cell.

    Attributes:
        message: a pattern for the whole message.
        attempt: the number of the last attempt.
        writes: the highest possible version; duplicate and late writes change nothing. The version is lower if the next
            delivery begins before the one that announced it has ended, or before a sweep publishes it again.
    """

    status: int
    message: str | None
    attempt: int
    writes: int

    def __str__(self) -> str:
        name = Status(self.status).name if self.status in set(Status) else str(self.status)
        return name if self.attempt < 2 else f"{name}, attempt {self.attempt}"


@dataclass(frozen=True)
class Outcome:
    """One row of the matrix.

    Attributes:
        what: what happens, as text.
        task, body: the task that runs, and the function in ``bodies`` that it calls.
        ends: how the cell ends, by pool. The outcome is impossible in a pool that is missing.
        options: the options of the signature.
        act: what the test does meanwhile: a method of ``Stage``.
        worker_end: how the worker ends: a method of ``EndingWorker``. A second worker then takes over the job.
        older: how the cell ends before Celery 5.7, where that differs.
    """

    what: str
    task: str
    body: str
    ends: Mapping[str, Ends]
    options: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None
    worker_end: str | None = None
    older: Mapping[str, Ends] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.what.replace("`", "").replace(" ", "-")

    def ending(self, pool: str) -> Ends | None:
        """Return how the cell ends with the installed Celery, or None if the outcome is impossible."""
        pool = "prefork" if pool == SPAWN else pool
        return (BEFORE_5_7 and self.older.get(pool)) or self.ends.get(pool)


def same(
    status: int, message: str | None, attempt: int = 1, writes: int = 2, *, except_for: Any = ()
) -> dict[str, Ends]:
    """Return the same ending for all pools, except for those named."""
    return {pool: Ends(status, message, attempt, writes) for pool in POOLS} | dict(except_for)


def only(pools: str, status: int, message: str | None, attempt: int = 1, writes: int = 2) -> dict[str, Ends]:
    """Return the ending for the pools named."""
    return {pool: Ends(status, message, attempt, writes) for pool in pools.split()}
