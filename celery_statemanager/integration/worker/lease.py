"""A worker's lease, and what its record says of what the worker does."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

from celery_statemanager import leases
from celery_statemanager.integration import redelivery, requests
from celery_statemanager.integration.backlog import backlog, pending_in_children
from celery_statemanager.integration.binding import Binding, delivery_of
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.worker.periodic import Periodic
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.records import Delivery

logger = logging.getLogger(__name__)

NO_ROOM = {
    "cells": "the worker's record has no room for all cells that it is at (%s): until it has, none of its attempts is "
    "taken for lost while it lives",
    "received": "the worker's record has no room for all messages that it has received (%s): should it die, the broker "
    "alone knows of the others; a lower worker_prefetch_multiplier mends it or, where they wait for their eta, a "
    "worker_eta_task_limit",
}
"""What is logged when a record begins to be cut."""


class Lease:
    """One worker's record, renewed with what it does at that moment.

    Args:
        clock: gives the time in seconds since whenever.
    """

    def __init__(self, tracker: Tracker, worker_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker = tracker
        self._clock = clock
        self._worker_id = worker_id
        self._due = self._due_for_news = -math.inf
        self._ran: dict[str, float | None] = {}
        """What was found running, and when the record first told that it had ended."""
        self._listed: set[weakref.ref[Any]] = set()
        """The received messages that the record lists, or has no room for."""
        self._seen: set[weakref.ref[Any]] = set()
        """The received messages that the last look found."""
        self._lacking: set[str] = set()
        """What the record has no room for, as ``NO_ROOM`` calls it."""

    def keep(self) -> Periodic:
        """Start renewing it; stopping gives it back."""
        often = self._tracker.settings.lease / leases.LOOKS
        give_back = lambda: self._tracker.store.drop_worker(self._worker_id)  # noqa: E731 - shorter than its name
        return Periodic("lease", self.renew_where_needed, lambda: often, give_back).start()

    def renew_where_needed(self) -> None:
        """Renew it if it is time, or if it lacks a message that is held for longer than a look. Raises: StoreError."""
        seen, self._seen = self._seen, requests.waiting()
        now = self._clock()
        if now >= self._due:
            self.renew()
        elif now >= self._due_for_news and (seen & self._seen) - self._listed:
            self.renew()
            self._due_for_news = now + self._tracker.settings.lease / leases.NEWS

    def renew(self) -> None:
        """Write the record: what runs, what ended less than a renewal ago, what waits. Raises: StoreError."""
        now, renewal = self._clock(), self._tracker.settings.lease / leases.RENEWALS
        listed = requests.waiting()
        received = {_name(*each): each for each in requests.received()}
        running = dict.fromkeys(cell_name(each.ref, each.tag, each.task_index) for each in requests.running())
        self._ran.update(running)
        ended = {name: now if told is None else told for name, told in self._ran.items() if name not in running}
        before = sorted(name for name, told in ended.items() if now - told < renewal)
        pending_cells = [*backlog.cells(), *pending_in_children()]
        report = Report([*running], before, pending_cells, map(self._row, received.values()))
        cut = leases.renew(self._tracker.store, self._worker_id, report, self._tracker.settings.lease)
        self._ran = {**running, **{name: ended[name] for name in before}}
        self._listed = listed
        self._due = now + renewal
        held = f"{len(running):,} run, {len(pending_cells):,} wait to be written, {len(received):,} are received"
        self._tell(cut, held)

    def _row(self, held: tuple[Any, Binding]) -> Received:
        request, binding = held
        requeues = redelivery.requeues(request.task, self._tracker.settings.on_lost)
        message = redelivery.of_message(request.message) if requeues else None
        return Received(binding.ref, binding.tag, binding.task_index, message, delivery_of(request.request_dict))

    def _tell(self, cut: list[str], held: str) -> None:
        """Log once that the record has no room for something, until it has again."""
        lacking = {"received" if kind == "received" else "cells" for kind in cut}
        for kind in sorted(lacking - self._lacking):
            logger.warning(NO_ROOM[kind], held)
        self._lacking = lacking


def _name(request: Any, binding: Binding) -> tuple[str, Delivery]:
    return binding.celery_task_id, delivery_of(request.request_dict)
