"""Who runs what, and until when that is believed (rules R14, R16)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from celery_statemanager.codec import compact
from celery_statemanager.errors import AttemptSuperseded, JobCancelled
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Delivery,
    JobKey,
    JobRef,
    Verdict,
    WorkerRecord,
    Write,
)
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)

RENEWALS = 3
"""How often a worker renews its record within one lease."""

LOOKS = 30
"""How often within one lease a worker looks whether its record lists what it holds. It renews it before its time for
what two looks in a row have found: what is begun sooner costs nothing."""

NEWS = 10
"""How often within one lease it does so at most, while more and more is received."""

MOST_BYTES = 768 * 1024
"""Bytes of a record's body, which goes whole to the store: Firestore takes a mebibyte."""

MOST_BYTES_OF_CELLS = 512 * 1024
"""What the cells that run or wait may take of it; received rows have the rest."""

SWEEPER = "~sweeper"
"""The name under which the process whose turn it is to sweep is kept among the workers."""

NOBODY = "~nobody"
"""The name of a worker that is never kept."""


def cell_name(ref: JobRef, tag: str, task_index: int) -> str:
    """Give a cell as worker records spell it."""
    return f"{ref.incarnation}.{task_index}.{tag}"


@dataclass(frozen=True, slots=True)
class Received:
    """A row that a worker has received and not begun.

    Attributes:
        message: what is sent again should the worker die; None where its task's policy is to mark it.
        delivery: its place among the deliveries of its cell.
    """

    ref: JobRef
    tag: str
    task_index: int
    message: str | None
    delivery: Delivery = Delivery()

    def to_list(self) -> list[Any]:
        """Give it as the body of a record spells it."""
        return [*self.ref.key, self.ref.incarnation, self.tag, self.task_index, self.message, self.delivery]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself at a renewal.

    Attributes:
        running: names of the cells whose attempts it runs; ``previous``: those of the renewal before.
        pending: names of the cells whose writes it still holds, because the store failed.
        received: is read only as far as the record has room for.
        cut: of a record that was read: which of these had more than it had room for.
        readable: whether this release understands the record that was read; what is in another's is not known.
    """

    running: Sequence[str] = ()
    previous: Sequence[str] = ()
    pending: Sequence[str] = ()
    received: Iterable[Received] = ()
    cut: Sequence[str] = ()
    readable: bool = True

    @property
    def lists_all(self) -> bool:
        """Whether an attempt that it does not list has no account."""
        return not {*self.cut} - {"received"}

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of the cells whose attempts or writes it lists."""
        return (*self.running, *self.previous, *self.pending)

    def lists(self, name: str) -> bool:
        """Whether an attempt on this cell is accounted for."""
        return not self.lists_all or name in self.cells

    def about(self, ref: JobRef) -> Report:
        """Return the part about one job; of a received row's message, only whether there is one remains."""
        prefix = f"{ref.incarnation}."
        running, previous, pending = (
            [name for name in names if name.startswith(prefix)] for names in (self.running, self.previous, self.pending)
        )
        received = [replace(row, message=row.message and row.message[:1]) for row in self.received if row.ref == ref]
        return replace(self, running=running, previous=previous, pending=pending, received=received)

    def to_json(self) -> str:
        """Give the body of a worker record, of at most ``MOST_BYTES``."""
        return self.fitted()[0]

    def fitted(self) -> tuple[str, list[str]]:
        """Give the body of a worker record, and what of it was cut."""
        body = _Body()
        for kind in ("pending", "running", "previous"):
            body.add(kind, getattr(self, kind), MOST_BYTES_OF_CELLS)
        body.add("received", (each.to_list() for each in self.received), MOST_BYTES)
        return body.text(), body.cut

    @classmethod
    def from_record(cls, record: WorkerRecord) -> Report:
        """Read the body of a worker record; one of another release is logged, once, and lists nothing."""
        try:
            return cls._read(json.loads(record.body))
        except (KeyError, TypeError, ValueError):
            _warn_unreadable(record.worker_id)
            return cls(cut=("pending", "running", "previous", "received"), readable=False)

    @classmethod
    def _read(cls, body: dict[str, Any]) -> Report:
        received = [
            Received(JobRef(JobKey(job_id, run_token), incarnation), tag, row, message, Delivery(*delivery))
            for job_id, run_token, incarnation, tag, row, message, delivery in body["received"]
        ]
        return cls(body["running"], body["previous"], body["pending"], received, body.get("cut", ()))


@lru_cache(maxsize=1_000)
def _warn_unreadable(worker_id: str) -> None:
    logger.warning(
        "cannot read the record of worker %s (written by another release): its running tasks are not reclaimed while "
        "its lease is valid, its received messages only by a process of its release",
        worker_id,
    )


class _Body:
    """The JSON of a record, put together of parts that are spelt once each."""

    def __init__(self) -> None:
        self.cut: list[str] = []
        self._size = 200  # what is not in the parts
        self._parts: dict[str, str] = {}

    def add(self, kind: str, values: Iterable[Any], most: int) -> None:
        """Take values while all of it has no more than so many bytes."""
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

    def text(self) -> str:
        """Give the whole."""
        fields = [f'"{kind}":[{values}]' for kind, values in self._parts.items()]
        return "{" + ",".join([*fields, f'"cut":{compact(self.cut)}']) + "}"


def each_worker(store: WorkerRegistry) -> Iterator[WorkerRecord]:
    """Yield all worker records, those of dead workers too, in bounded memory."""
    return (each for each in store.list_workers() if each.worker_id != SWEEPER)


def jobs_at_work(store: WorkerRegistry) -> Callable[[str], bool]:
    """Return whether a live worker runs, has received or may still write a cell of a job, by its incarnation.

    Keeps the names of live workers and of the jobs they are at, not their records.
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
        found.update(row.ref.incarnation for row in report.received)
    if alive:
        found.update(each.ref.incarnation for each in store.list_open_attempts() if each.cell.owner in alive)
    return found.__contains__


def begin(
    store: WorkerRegistry,
    ref: JobRef,
    request: Begin,
    *,
    max_lost: int,
    alone_since: float | None = None,
) -> BeginReply:
    """Take an attempt; a duplicate takes it only from an attempt that no live worker accounts for.

    Args:
        max_lost: losses at which the cell is LOST rather than begun again.
        alone_since: monotonic time at which the asking worker ran nothing for this cell: what it began before is dead.
    """
    reply = store.begin(ref, request)
    if reply.verdict is not Verdict.DUPLICATE:
        return reply
    cell = reply.cell
    own = alone_since if cell.owner is not None and cell.owner == request.owner else None
    ended = own is not None and cell.began_at < store.now() - (time.monotonic() - own) * 1_000_000
    if not ended and _accounted_for(store, cell, cell_name(ref, request.tag, request.task_index)):
        return reply
    if cell.owner is not None and cell.losses + 1 >= max_lost:
        place = request.tag, request.task_index
        decided = mark_lost(store, ref, *place, cell, request.event_id, max_lost=max_lost)
        return replace(reply, verdict=Verdict.CLOSED, decided=decided)
    return store.begin(ref, replace(request, supersedes=cell.attempt))


def mark_lost(
    store: WorkerRegistry, ref: JobRef, tag: str, task_index: int, cell: Cell, event_id: str, *, max_lost: int
) -> tuple[str, ...]:
    """End an open attempt whose worker is dead as LOST; return the latches that this decided."""
    losses = "" if cell.losses == 0 else f" (loss {cell.losses + 1} of {max_lost})"
    message = f"lost with its worker {cell.owner}{losses}"
    lost = Write.lost(tag, task_index, message, attempt=cell.attempt, event_id=event_id)
    try:
        return store.write(ref, lost).decided
    except (AttemptSuperseded, JobCancelled):
        return ()


def try_acquire(store: WorkerRegistry, holder: str, seconds: float) -> bool:
    """Whether it is this holder's turn to sweep, for so many seconds; two at once would do no harm."""
    return store.try_acquire(SWEEPER, holder, seconds)


def try_a_write(store: WorkerRegistry) -> None:
    """See whether leases can be renewed: a store may answer readers and keep writers waiting. Raises: StoreError."""
    store.drop_worker(NOBODY)


def renew(store: WorkerRegistry, worker_id: str, report: Report, lease: float) -> list[str]:
    """Say in one write what a worker does, and that it lives for ``lease`` more seconds; give what had no room."""
    body, cut = report.fitted()
    store.put_worker(worker_id, body, lease)
    return cut


def _accounted_for(store: WorkerRegistry, cell: Cell, name: str) -> bool:
    """Whether a live worker lists an attempt, or has hardly had the time to."""
    record = None if cell.owner is None else store.get_worker(cell.owner)
    if record is None or record.lease_until <= store.now():
        return False
    renewal = (record.lease_until - record.renewed_at) // RENEWALS
    return cell.began_at >= record.renewed_at - renewal or Report.from_record(record).lists(name)
