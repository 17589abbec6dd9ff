"""The matrix of outcomes: what a cell ends with, by what happens to its task and in which pool.

One table (``matrix_rows``) for the tests that play it (``test_matrix``) and for docs/internals/celery.md, which shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import celery

from celery_statemanager import Status

POOLS = ("prefork", "threads", "solo", "gevent", "eager")
WORKERS = "prefork threads solo gevent"
BEFORE_5_7 = tuple(map(int, celery.__version__.split(".")[:2])) < (5, 7)


class Ends(NamedTuple):
    """How a cell ends.

    Attributes:
        message: a pattern for the whole of it.
        attempt: of how many.
        writes: its version at the most: what comes doubled or late changes nothing. Fewer, where the next delivery
            begins before the one that announced it has ended, or before the sweep sends it again.
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
        what: what happens, for readers.
        task, body: which variant of the acting task does what.
        ends: how it ends by pool; a pool that is not there cannot have it.
        options: of the signature.
        act: what the test does meanwhile, a method of ``Stage``.
        fate: what becomes of the worker, a method of ``Fate``: it then has one of its own, and a successor.
        older: how it ends before Celery 5.7, where that differs.
    """

    what: str
    task: str
    body: str
    ends: Mapping[str, Ends]
    options: Mapping[str, Any] = field(default_factory=dict)
    act: str | None = None
    fate: str | None = None
    older: Mapping[str, Ends] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.what.replace("`", "").replace(" ", "-")

    def ending(self, pool: str) -> Ends | None:
        """How it ends with the Celery that is installed; None where it cannot happen."""
        return (BEFORE_5_7 and self.older.get(pool)) or self.ends.get(pool)


def same(status: int, message: str | None, attempt: int = 1, writes: int = 2, *, but: Any = ()) -> dict[str, Ends]:
    """Give the same ending in all pools, but for those named."""
    return {pool: Ends(status, message, attempt, writes) for pool in POOLS} | dict(but)


def only(pools: str, status: int, message: str | None, attempt: int = 1, writes: int = 2) -> dict[str, Ends]:
    """Give the ending in the pools named."""
    return {pool: Ends(status, message, attempt, writes) for pool in pools.split()}
