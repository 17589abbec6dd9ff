"""The lease of a worker: a record in the store that lists what the worker runs and holds, renewed while it lives."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from celery_statemanager import leases, put_back
from celery_statemanager.integration import pools, redelivery, requests
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox import changed
from celery_statemanager.integration.periodic import Periodic, Threads
from celery_statemanager.integration.task import motion
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.records import Delivery
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)

NO_ROOM = {
    "cells": "the worker's record has no room for all cells that run or wait to be written (%s): until it has, none of "
    "the worker's attempts is marked as LOST while its lease is valid",
    "received": "the worker's record has no room for all received messages (%s): if the worker dies, the sweep cannot "
    "publish the others again; set a lower worker_prefetch_multiplier or, for messages with an eta, a "
    "worker_eta_task_limit",
    "ended": "the worker's record has no room for all attempts that the worker has stopped (%s): the others count as "
    "losses",
}
"""The warning for each part of a record that is cut."""


class Lease:
    """The record of one worker.

    Args:
        store: a store that only the thread of the lease uses; that of the tracker when not given.
        idle: returns the seconds for which the worker's main loop has been blocked.
        processes: returns the ids of the processes that run the worker's tasks.
        clock: returns a time in seconds that only rises.
    """

    def __init__(
        self,
        tracker: Tracker,
        worker_id: str,
        *,
        store: WorkerRegistry | None = None,
        idle: Callable[[], float] = lambda: 0.0,
        processes: Callable[[], Sequence[int]] = lambda: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._store = tracker.store if store is None else store
        self._settings = tracker.settings
        self._idle = idle
        self._processes = processes
        self._clock = clock
        self._worker_id = worker_id
        self._due = self._early_due = -math.inf
        self._is_stopping = False
        self._connections_ended = self._ends_noted = 0
        """How many connections have ended, and how many of them ``put_back`` shows."""
        self._last_requests: list[Any] = []
        """The requests that ran when the worker began to shut down, so that they exist until it has."""
        self._ran: dict[str, float | None] = {}
        """The cells that were found running, with the time of the first record that lists them as ended."""
        self._ended: dict[str, int] = {}
        """The cells whose attempts the worker has ended itself, with the store's time at which this was found."""
        self._stopped: dict[str, Binding] = {}
        """The cells that the last check found to be ended by the worker itself."""
        self._listed: set[weakref.ref[Any]] = set()
        """The received messages that the record lists, or has no room for."""
        self._seen: set[weakref.ref[Any]] = set()
        """The received messages that the last check found."""
        self._parts: set[weakref.ref[Any]] = set()
        """The parts of replacements that the record lists as running."""
        self._parts_seen: set[weakref.ref[Any]] = set()
        """The parts that the last check found running."""
        self._parts_to_list: set[weakref.ref[Any]] = set()
        """The parts that the last two checks found running."""
        self._moving: AbstractSet[str] = set()
        """The cells that the record lists as moving."""
        self._lacking: set[str] = set()
        """The keys of ``NO_ROOM`` that apply to the record."""

    def keep(self) -> Periodic:
        """Start a thread that renews the lease, and releases it when it is stopped."""
        interval = self._settings.lease / leases.CHECKS
        threads = Threads.native()
        return Periodic("lease", self.renew_if_needed, lambda: interval, self.release, threads=threads).start()

    def announce_stop(self) -> None:
        """Request that the next check records the shutdown of the worker. A signal handler may call this."""
        if not self._is_stopping:
            self._is_stopping, self._due = True, -math.inf
            self._last_requests = self._tracker.held_messages.unreported()

    def note_connection_end(self) -> None:
        """Request that the next check records that the broker may put messages of this worker back. Thread-safe."""
        self._connections_ended, self._due = self._connections_ended + 1, -math.inf

    def renew_if_needed(self) -> None:
        """Renew the record when it is due, when the worker has ended an attempt, or when it lacks a received message.

        A message that is missing is one that two checks in a row found. Also renew it when it lacks a part of a
        replacement that two checks found running, and at once when one that it lists has ended: no other record shows
        which parts were cut off. Raises: StoreError.
        """
        held = self._tracker.held_messages
        seen, self._seen = self._seen, held.waiting()
        parts_seen, self._parts_seen = self._parts_seen, _references(held.running_parts())
        self._parts_to_list = parts_seen & self._parts_seen
        lacks = (
            motion.moving_cells(self._tracker).keys() - self._moving
            or (seen & self._seen) - self._listed
            or self._parts_to_list - self._parts
        )
        now = self._clock()
        if self._find_ended() or now >= self._due or self._parts - self._parts_seen:
            self.renew()
        elif now >= self._early_due and lacks:
            self.renew()
            self._early_due = now + self._settings.lease / leases.EARLY_RENEWALS

    def renew(self) -> None:
        """Write what runs, what ended within the last renewal period, and what waits. Raises: StoreError."""
        now, renewal = self._clock(), self._settings.lease / leases.RENEWALS
        connections_ended = self._connections_ended
        if connections_ended > self._ends_noted:
            put_back.note(self._store)
            self._ends_noted = connections_ended
        self._find_ended()
        held = self._tracker.held_messages
        is_stopping, listed = self._is_stopping, held.waiting()
        received = {_key(*each): each for each in held.waiting_cells()}
        running = self._running()
        self._ran.update(running)
        ended = {name: now if since is None else since for name, since in self._ran.items() if name not in running}
        before = sorted(name for name, since in ended.items() if now - since < renewal and name not in self._ended)
        pending_cells = [*self._tracker.backlog.cells(), *self._tracker.pending_files.of_children()]
        parts = [each for each in held.running_parts() if weakref.ref(each[0]) in self._parts_to_list]
        report = Report([*running], before, pending_cells, map(self._row, received.values()), self._rows_of(parts))
        report = replace(report, moving=motion.moving_cells(self._tracker))
        cut = self._put(report, is_stopping=is_stopping)
        self._ran = {**running, **{name: ended[name] for name in before}}
        self._moving = report.moving.keys()
        self._listed, self._parts = listed, _references(parts)
        is_current = is_stopping is self._is_stopping and connections_ended == self._connections_ended
        self._due = now + renewal if is_current else -math.inf
        self._warn(cut, f"{len(running):,} run, {len(pending_cells):,} wait, {len(received):,} are received")

    def release(self) -> None:
        """End the lease. Keep the record if attempts may be open, so that others take them over and count no loss.

        Received messages are not listed: the broker delivers them again. Raises: StoreError.
        """
        self._find_ended()
        held, running = self._tracker.held_messages, self._running()
        parts = self._rows_of(held.running_parts())
        if not held.unreported() and not parts and not self._ended:
            put_back.drop_worker(self._store, self._worker_id)
            return
        put_back.note(self._store)
        lease = self._settings.lease if held.has_living() else 0.0
        self._put(Report([*running], parts=parts), is_stopping=True, lease=lease)

    def _put(self, report: Report, *, is_stopping: bool, lease: float | None = None) -> list[str]:
        idle, pool = self._idle(), pools.current()
        report = replace(
            report,
            ended=self._ended,
            stopping=is_stopping,
            idle=idle,
            limits=pool.limits,
            in_main_loop=pool.in_main_loop,
            processes=self._processes(),
        )
        return leases.renew(self._store, self._worker_id, report, self._settings.lease if lease is None else lease)

    def _running(self) -> dict[str, None]:
        return dict.fromkeys(map(_name, self._tracker.held_messages.running()))

    def _find_ended(self) -> bool:
        """Return whether the worker has ended attempts itself since the last call. Raises: StoreError.

        An attempt of this worker that begins after the time that is stored for its cell is another one. The time is
        therefore read before it is certain that the worker has received no further message of the cell.
        """
        find, before = self._tracker.held_messages.find_stopped, self._stopped
        stopped = {_name(cell): cell for cell in find().values()}
        new = [name for name, cell in stopped.items() if before.get(name) is not cell]
        if new:
            now = self._store.now()
            certain = {_name(cell): cell for cell in find().values()}
            self._ended.update({name: now for name in new if certain.get(name) is stopped[name]})
            self._ended = dict([*self._ended.items()][-requests.MAX_STOPPED :])
        self._stopped = stopped
        return bool(new)

    def _rows_of(self, parts: Iterable[tuple[Any, Binding]]) -> list[Received]:
        return [self._row_of_part(*each) for each in parts]

    def _row_of_part(self, request: Any, binding: Binding) -> Received:
        requeues = redelivery.requeues(request.task, self._settings.on_lost)
        message = changed.message_to_json(request.message, request.task.name) if requeues else None
        delivery = Delivery(binding.publication, binding.replacements)
        return Received(binding.ref, binding.tag, binding.task_index, delivery, message)

    def _row(self, held: tuple[Any, Binding]) -> Received:
        request, binding = held
        message, delivery, eta = None, binding.delivery(request.request_dict), request.request_dict.get("eta")
        if binding.changed:
            pass  # the cell has it
        elif binding.replacements:  # sent by a part of a replacement, not by the replaced task
            message = changed.message_to_json(request.message, request.task.name)
        elif delivery.retries and eta:
            message = changed.eta_to_json(request.task.name, eta)
        return Received(binding.ref, binding.tag, binding.task_index, delivery, message)

    def _warn(self, cut: list[str], numbers: str) -> None:
        """Log each part for which the record has no room, once until it has room again."""
        lacking = {
            "received" if kind == "parts" else kind if kind in NO_ROOM else "cells" for kind in cut if kind != "moving"
        }
        for kind in sorted(lacking - self._lacking):
            logger.warning(NO_ROOM[kind], numbers)
        self._lacking = lacking


def _references(held: list[tuple[Any, Binding]]) -> set[weakref.ref[Any]]:
    return {weakref.ref(request) for request, _ in held}


def _key(request: Any, binding: Binding) -> tuple[str, Delivery]:
    return binding.celery_task_id, binding.delivery(request.request_dict)


def _name(cell: Binding) -> str:
    return cell_name(cell.ref, cell.tag, cell.task_index)
