"""Publish the messages of a job: those that a process has claimed, and all that are due."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from kombu.exceptions import OperationalError

from celery_statemanager import leases
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration import publication, requests
from celery_statemanager.integration.binding import Binding, binding_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.envelope import Envelope, publish
from celery_statemanager.records import CALLBACK_ROW, Claimed, ClaimRequest, JobRef, Write, WriteReply
from celery_statemanager.texts import describe

logger = logging.getLogger(__name__)

FEWEST, MOST = 100, 1_000
"""Limits for the number of rows that are claimed at once. If the publisher dies, they may be published again."""

SECONDS = 0.25
"""Approximate seconds for which the rows of one claim are published: claims are stored, and stores differ in speed."""

REJECTED = "rejected"
"""The key of an entry in a block, instead of a message, with the reason why there is none."""

BINDING = "binding"
"""The key, beside ``REJECTED``, of the header that the message would have had."""


_thread = threading.local()
"""In ``failures``, how often this thread may have left a claim: its later ones must not take the place of it."""


def publisher_id() -> str:
    """Return the name under which this thread claims messages: that of its process, and the thread."""
    failures = getattr(_thread, "failures", 0)
    return f"{requests.process_id()}/{os.getpid()}.{threading.get_ident()}.{failures}"


def claim_later_under_another_name() -> None:
    """Call this if the store may have made a claim for this thread that the thread does not know of."""
    _thread.failures = getattr(_thread, "failures", 0) + 1


def write(tracker: Tracker, ref: JobRef, request: Write, call: Callable[[], WriteReply] | None = None) -> WriteReply:
    """Write a cell, and publish what this makes due. Raises: as ``Store.write``.

    Args:
        call: makes the write; that of the store when not given.
    """
    request.publisher = publisher_id()
    try:
        reply = tracker.store.write(ref, request) if call is None else call()
    except StoreUnavailable:
        claim_later_under_another_name()
        raise
    publish_made_due(tracker, ref, reply)
    return reply


def publish_made_due(tracker: Tracker, ref: JobRef, reply: WriteReply) -> None:
    """Publish what a write made due: callbacks, and the rows that this process claimed with it."""
    publish_decided(tracker, ref, reply.decided)
    if reply.claimed:
        _Publisher(tracker, ref).publish_claimed(reply.claimed)


def publish_due(tracker: Tracker, ref: JobRef, *, dead: Iterable[str] = (), seconds: float = math.inf) -> int:
    """Claim and publish all messages that are due, or as many as may be in flight; return their number.

    What cannot be published because the broker or the store fails is left to the sweep.

    Args:
        dead: publishers that have died; what they had claimed last is published again unless it has begun.
        seconds: about how long this takes at most; the rest is left to the sweep.
    """
    return _Publisher(tracker, ref).publish_due(frozenset(dead), seconds)


def _next_limit(limit: int, seconds: float) -> int:
    """Return how many rows to claim next, given the time that the last ones took."""
    return max(FEWEST, min(MOST, round(limit * SECONDS / max(seconds, 0.001))))


class _Publisher:
    """Publishes messages of one job from one thread. It raises no errors: the job is accepted, and sweeps go on."""

    def __init__(self, tracker: Tracker, ref: JobRef) -> None:
        self._tracker = tracker
        self._ref = ref
        self._name = publisher_id()
        self._log_extra = {"job_id": ref.key.job_id}

    def publish_due(self, dead: frozenset[str], seconds: float) -> int:
        published, limit, end = 0, FEWEST, time.monotonic() + seconds
        with self._leaving_failures(), self._tracker.app.producer_or_acquire() as producer:
            while True:
                began = time.monotonic()
                claimed = self._claim(limit if began < end else 0, dead)
                if not claimed.rows:
                    break
                self._publish(claimed.rows, claimed.doubtful, producer)
                published, dead = published + len(claimed.rows), frozenset()
                limit = _next_limit(limit, time.monotonic() - began)
        return published

    def _claim(self, limit: int, dead: frozenset[str]) -> Claimed:
        lease = self._tracker.settings.lease
        request = ClaimRequest(publisher=self._name, limit=limit, lease=lease, dead=dead)
        return self._tracker.store.claim(self._ref, request)

    def publish_claimed(self, rows: IndexSet) -> None:
        """Publish rows that this thread has claimed."""
        with self._leaving_failures(), self._tracker.app.producer_or_acquire() as producer:
            self._publish(rows, IndexSet(), producer)

    def _publish(self, rows: IndexSet, doubtful: IndexSet, producer: Any) -> None:
        for row in rows:
            message = self._tracker.blocks.message(self._tracker.store, self._ref, row)
            if REJECTED in message:
                self._reject(Binding.from_header(message[BINDING]), message[REJECTED])
            elif row not in doubtful or not self._has_begun(message):
                self._send(message, producer)

    def _send(self, message: Envelope, producer: Any) -> None:
        """Publish a message. End the row if the message can never be published."""
        connection = producer.connection
        try:
            publish(self._tracker.app, message, producer)
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors):
            raise  # the broker is away, full, or wrongly configured
        except Exception as error:  # noqa: BLE001 - brokers and their clients raise any error
            binding = binding_of(message["publish"]["headers"])
            if binding is not None:
                self._reject(binding, f"not published: {describe(error)}")

    def _has_begun(self, message: Envelope) -> bool:
        binding = binding_of(message["publish"]["headers"])
        if binding is None:
            return False
        cell = self._tracker.store.get_cell(self._ref, binding.tag, binding.task_index)
        return cell is not None and (cell.attempt > 0 or cell.final)

    def _reject(self, binding: Binding, message: str) -> None:
        publication.reject(self._tracker, binding, message, partial(publish_decided, self._tracker, self._ref))

    @contextmanager
    def _leaving_failures(self) -> Iterator[None]:
        """Leave what this thread has claimed to the sweep if it cannot be published now."""
        try:
            yield
        except JobNotFound as error:
            logger.info("not published: %s", error, extra=self._log_extra)
        except Exception as error:  # noqa: BLE001 - brokers and their clients raise any error
            text = "cannot publish messages of job %r now, a sweep will: %s"
            logger.warning(text, self._ref.key.job_id, describe(error), extra=self._log_extra)
            self._leave()

    def _leave(self) -> None:
        claim_later_under_another_name()
        store, ref, left = self._tracker.store, self._ref, f"unpublished/{self._name}"
        request = ClaimRequest(publisher=left, limit=0, dead=frozenset({self._name, left}))  # may be repeated
        key = leases.cell_name(ref, "outbox", CALLBACK_ROW), self._name
        with suppress(StoreError):
            self._tracker.backlog.now_or_later(key, lambda: store.claim(ref, request), self._log_extra)
