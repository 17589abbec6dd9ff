"""Worker records: which cells a worker runs or has received, and until when its lease is valid (rules R14, R16)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from celery_statemanager.codec import compact
from celery_statemanager.records import Delivery, JobKey, JobRef, WorkerRecord
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals of a worker's record within one lease."""

CHECKS = 30
"""Checks within one lease whether a worker's record lists all its cells.

A cell that two successive checks find unlisted causes an early renewal. Shorter executions cause none.
"""

EARLY_RENEWALS = 10
"""Maximum early renewals within one lease, while messages keep arriving."""

MOST_BYTES = 768 * 1024
"""Maximum bytes of a record's body. A Firestore document holds one mebibyte."""

MOST_BYTES_OF_CELLS = 512 * 1024
"""Maximum bytes for running and pending cells. Received rows use the rest."""

SWEEPER = "~sweeper"
"""The worker id of the record that holds the lease to sweep."""

_NOT_A_WORKER = "~"
"""The prefix of the ids of records that are not those of workers."""

_ABSENT_WORKER = "~nobody"
"""A worker id that never has a record."""


def cell_name(ref: JobRef, tag: str, task_index: int) -> str:
    """Return the name of a cell in worker records."""
    return f"{ref.incarnation}.{task_index}.{tag}"


@dataclass(frozen=True, slots=True)
class Received:
    """A row that a worker has received but not begun, or whose replacement it runs a part of.

    Attributes:
        delivery: the delivery of the message; for a part, the delivery that waits for it.
        message: for a part, the message to publish again if the worker dies; None if its policy is to mark the row. For
            a row, what nothing else keeps: the message of the last task of a replacement, the eta of a retry.
    """

    ref: JobRef
    tag: str
    task_index: int
    delivery: Delivery = Delivery()
    message: str | None = None

    def to_list(self) -> list[Any]:
        """Return the row as a list for the body of a record."""
        return [*self.ref.key, self.ref.incarnation, self.tag, self.task_index, self.delivery, self.message]


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a worker record.

    Attributes:
        running: names of the cells whose attempts the worker runs; ``previous``: those of the previous renewal.
        pending: names of the cells with writes that the worker still holds, because the store failed.
        received: rows that the worker has received; iterated only until the record is full.
        parts: rows whose replacement has a part that the worker runs.
        cut: in a record that was read, the names of the lists above that did not fit completely.
        readable: whether this release can read the record; if not, its content is unknown.
        ended: names of cells whose attempts the worker has ended itself, with the time by which their bodies had ended.
        stopping: whether the worker is shutting down.
        idle: seconds for which the main loop of the worker has been blocked.
        limits: which time limits have no effect in the worker's pool, as text; empty if all have.
        processes: the ids of the processes that run tasks: its own, and those of its children.
        moving: names of the cells whose attempts have waited in a barrier since their last write, with the seconds for
            which they count as moving therefore.
        in_main_loop: whether its main loop runs the tasks, so that it does not list all messages that it holds.
    """

    running: Sequence[str] = ()
    previous: Sequence[str] = ()
    pending: Sequence[str] = ()
    received: Iterable[Received] = ()
    parts: Sequence[Received] = ()
    cut: Sequence[str] = ()
    readable: bool = True
    ended: Mapping[str, int] = field(default_factory=dict)
    stopping: bool = False
    idle: float = 0.0
    limits: str = ""
    processes: Sequence[int] = ()
    in_main_loop: bool = False
    moving: Mapping[str, float] = field(default_factory=dict)

    @property
    def lists_all(self) -> bool:
        """Whether the record lists every cell that the worker runs or still has to write."""
        return not {*self.cut} - {"received", "parts", "ended", "moving"}

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of the listed cells, without received rows."""
        return (*self.running, *self.previous, *self.pending)

    def lists(self, name: str) -> bool:
        """Return whether the worker lists, or may run, an attempt on this cell."""
        return not self.lists_all or name in self.cells

    def has_ended(self, name: str, began_at: int) -> bool:
        """Return whether the worker has ended an attempt on this cell itself. The worker may have begun another one."""
        return began_at < self.ended.get(name, 0)

    def stands_still_since(self, renewed_at: int, lease_until: int) -> int | None:
        """Return since when the main loop of a live worker has been blocked; None if for less than a lease."""
        idle = round(self.idle * 1_000_000)
        return renewed_at - idle if idle > lease_until - renewed_at and not self.stopping else None

    def about(self, ref: JobRef) -> Report:
        """Return the report reduced to one job."""
        prefix = f"{ref.incarnation}."
        running, previous, pending = (
            [name for name in names if name.startswith(prefix)] for names in (self.running, self.previous, self.pending)
        )
        received = [row for row in self.received if row.ref == ref]
        ended = {name: moment for name, moment in self.ended.items() if name.startswith(prefix)}
        return replace(self, running=running, previous=previous, pending=pending, received=received, ended=ended)

    def to_json(self) -> str:
        """Return the body of a worker record, at most ``MOST_BYTES`` long."""
        return self.fitted()[0]

    def fitted(self) -> tuple[str, list[str]]:
        """Return the body of a worker record and the names of the lists that did not fit."""
        body = _Body()
        for kind in ("pending", "running", "previous"):
            body.add(kind, getattr(self, kind), MOST_BYTES_OF_CELLS)
        body.add("ended", self.ended.items(), MOST_BYTES_OF_CELLS)
        body.add("moving", self.moving.items(), MOST_BYTES_OF_CELLS)
        for kind in ("parts", "received"):
            body.add(kind, (each.to_list() for each in getattr(self, kind)), MOST_BYTES)
        others = {"stopping": self.stopping, "idle": round(self.idle, 3), "limits": self.limits}
        others["inMainLoop"] = self.in_main_loop
        return body.text(**others, processes=self.processes), body.cut

    @classmethod
    def from_record(cls, record: WorkerRecord) -> Report:
        """Read the body of a worker record. If it cannot be read, log that once and return an unreadable report."""
        try:
            return cls._read(json.loads(record.body))
        except (KeyError, TypeError, ValueError):
            _warn_unreadable(record.worker_id)
            return cls(cut=("pending", "running", "previous", "received"), readable=False)

    @classmethod
    def _read(cls, body: dict[str, Any]) -> Report:
        received, parts = (
            [
                Received(JobRef(JobKey(job_id, run_token), incarnation), tag, row, Delivery(*delivery), message)
                for job_id, run_token, incarnation, tag, row, delivery, message in rows
            ]
            for rows in (body["received"], body.get("parts", ()))
        )
        lists = body["running"], body["previous"], body["pending"], received, parts, body.get("cut", ())
        return cls(  # earlier releases do not write all of them
            *lists,
            ended=dict(body.get("ended", ())),
            stopping=body.get("stopping", False),
            idle=body.get("idle", 0.0),
            limits=body.get("limits", ""),
            processes=body.get("processes", ()),
            in_main_loop=body.get("inMainLoop", False),
            moving=dict(body.get("moving", ())),
        )


@lru_cache(maxsize=1_000)
def _warn_unreadable(worker_id: str) -> None:
    logger.warning(
        "cannot read the record of worker %s (written by another release): its running tasks are not reclaimed while "
        "its lease is valid, its received messages only by a process of its release",
        worker_id,
    )


class _Body:
    """Build the JSON of a record from lists, each value encoded once."""

    def __init__(self) -> None:
        self.cut: list[str] = []
        self._size = 400  # enough for the keys and the other values
        self._parts: dict[str, str] = {}

    def add(self, kind: str, values: Iterable[Any], most: int) -> None:
        """Add values as long as the body has at most ``most`` bytes."""
        taken: list[str] = []
        for value in values:
            text = compact(value)
            size = len(text.encode()) + 1
            if self._size + size > most:
                self.cut.append(kind)
                break
            self._size += size
            taken.append(text)
        self._parts[kind] = ",".join(taken)

    def text(self, **others: Any) -> str:
        """Return the JSON text of the lists and the other values."""
        fields = [f'"{kind}":[{values}]' for kind, values in self._parts.items()]
        fields += [f'"{name}":{compact(value)}' for name, value in {"cut": self.cut, **others}.items()]
        return "{" + ",".join(fields) + "}"


def each_worker(store: WorkerRegistry) -> Iterator[WorkerRecord]:
    """Yield all worker records, those of dead workers too, in bounded memory."""
    return (each for each in store.list_workers() if not each.worker_id.startswith(_NOT_A_WORKER))


def jobs_at_work(store: WorkerRegistry) -> Callable[[str], bool]:
    """Return a predicate: whether a live worker holds cells of the job with a given incarnation.

    A worker holds the cells that it runs, has received or may still write. Memory grows with the number of live
    workers and of their jobs, not with the size of their records.
    """
    now = store.now()
    alive: set[str] = set()
    found: set[str] = set()
    for each in each_worker(store):
        if each.lease_until <= now:
            continue
        report = Report.from_record(each)
        if "pending" in report.cut:
            return lambda _: True
        alive.add(each.worker_id)
        found.update(name.partition(".")[0] for name in report.cells)
        found.update(row.ref.incarnation for row in (*report.received, *report.parts))
    if alive:
        found.update(each.ref.incarnation for each in store.list_open_attempts() if each.cell.owner in alive)
    return found.__contains__


def was_stopped(record: WorkerRecord | None, name: str, began_at: int, now: int) -> bool:
    """Return whether the owner ended an attempt itself, or died while it was shutting down. This is not a loss."""
    if record is None:
        return False
    report = Report.from_record(record)
    return report.has_ended(name, began_at) or (report.stopping and record.lease_until <= now)


def try_acquire(store: WorkerRegistry, holder: str, seconds: float) -> bool:
    """Acquire the lease to sweep for some seconds. Return whether the holder has it. Concurrent sweeps are harmless."""
    return store.try_acquire(SWEEPER, holder, seconds)


def check_writable(store: WorkerRegistry) -> None:
    """Check that the store accepts writes. A store may answer readers while writers wait. Raises: StoreError."""
    store.drop_worker(_ABSENT_WORKER)


def renew(store: WorkerRegistry, worker_id: str, report: Report, lease: float) -> list[str]:
    """Write a worker's report and extend its lease to ``lease`` seconds from now. Return the lists that did not fit."""
    body, cut = report.fitted()
    store.put_worker(worker_id, body, lease)
    return cut
