"""The lease of a worker: a record in the store that lists what the worker runs and holds, renewed while it lives."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery_statemanager import leases
from celery_statemanager.integration import redelivery
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.worker.periodic import Periodic
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.records import Delivery

logger = logging.getLogger(__name__)

NO_ROOM = {
    "cells": "the worker's record has no room for all cells that run or wait to be written (%s): until it has, none of "
    "the worker's attempts is marked as LOST while its lease is valid",
    "received": "the worker's record has no room for all received messages (%s): if the worker dies, the sweep cannot "
    "send the others again; set a lower worker_prefetch_multiplier or, for messages with an eta, a "
    "worker_eta_task_limit",
}
"""The warning for each part of a record that is cut."""


class Lease:
    """The record of one worker.

    Args:
        clock: returns a time in seconds that only rises.
    """

    def __init__(self, tracker: Tracker, worker_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker = tracker
        self._clock = clock
        self._worker_id = worker_id
        self._due = self._early_due = -math.inf
        self._ran: dict[str, float | None] = {}
        """The cells that were found running, with the time of the first record that lists them as ended."""
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
        self._lacking: set[str] = set()
        """The keys of ``NO_ROOM`` that apply to the record."""

    def keep(self) -> Periodic:
        """Start a thread that renews the lease, and releases it when it is stopped."""
        interval = self._tracker.settings.lease / leases.CHECKS
        release = lambda: self._tracker.store.drop_worker(self._worker_id)  # noqa: E731 - shorter than its name
        return Periodic("lease", self.renew_if_needed, lambda: interval, release).start()

    def renew_if_needed(self) -> None:
        """Renew the record when it is due, or when it lacks a message that two checks in a row found.

        Also renew it when it lacks a part of a replacement that two checks found running, and at once when one that it
        lists has ended: no other record shows which parts were cut off. Raises: StoreError.
        """
        held = self._tracker.held_messages
        seen, self._seen = self._seen, held.waiting()
        parts_seen, self._parts_seen = self._parts_seen, _references(held.running_parts())
        self._parts_to_list = parts_seen & self._parts_seen
        lacks = (seen & self._seen) - self._listed or self._parts_to_list - self._parts
        now = self._clock()
        if now >= self._due or self._parts - self._parts_seen:
            self.renew()
        elif now >= self._early_due and lacks:
            self.renew()
            self._early_due = now + self._tracker.settings.lease / leases.EARLY_RENEWALS

    def renew(self) -> None:
        """Write what runs, what ended within the last renewal period, and what waits. Raises: StoreError."""
        now, renewal = self._clock(), self._tracker.settings.lease / leases.RENEWALS
        held = self._tracker.held_messages
        listed = held.waiting()
        received = {_key(*each): each for each in held.waiting_cells()}
        running = dict.fromkeys(cell_name(each.ref, each.tag, each.task_index) for each in held.running())
        self._ran.update(running)
        ended = {name: now if since is None else since for name, since in self._ran.items() if name not in running}
        before = sorted(name for name, since in ended.items() if now - since < renewal)
        pending_cells = [*self._tracker.backlog.cells(), *self._tracker.pending_files.of_children()]
        parts = [each for each in held.running_parts() if weakref.ref(each[0]) in self._parts_to_list]
        replaced = [replace(self._row(each), delivery=Delivery(each[1].replacements)) for each in parts]
        report = Report([*running], before, pending_cells, map(self._row, received.values()), replaced)
        cut = leases.renew(self._tracker.store, self._worker_id, report, self._tracker.settings.lease)
        self._ran = {**running, **{name: ended[name] for name in before}}
        self._listed, self._parts = listed, _references(parts)
        self._due = now + renewal
        self._warn(cut, f"{len(running):,} run, {len(pending_cells):,} wait, {len(received):,} are received")

    def _row(self, held: tuple[Any, Binding]) -> Received:
        request, binding = held
        requeues = redelivery.requeues(request.task, self._tracker.settings.on_lost)
        message = redelivery.message_to_json(request.message) if requeues else None
        return Received(binding.ref, binding.tag, binding.task_index, message, binding.delivery(request.request_dict))

    def _warn(self, cut: list[str], numbers: str) -> None:
        """Log each part for which the record has no room, once until it has room again."""
        lacking = {"received" if kind in ("received", "parts") else "cells" for kind in cut}
        for kind in sorted(lacking - self._lacking):
            logger.warning(NO_ROOM[kind], numbers)
        self._lacking = lacking


def _references(held: list[tuple[Any, Binding]]) -> set[weakref.ref[Any]]:
    return {weakref.ref(request) for request, _ in held}


def _key(request: Any, binding: Binding) -> tuple[str, Delivery]:
    return binding.celery_task_id, binding.delivery(request.request_dict)
