"""Publish the messages of a job: those that a process has claimed, and all that are due."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from celery_statemanager import leases
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration import publication
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import note_end, publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.due import Unpublishable, due_stage, message_again, message_of, numbered
from celery_statemanager.integration.outbox.envelope import Envelope, publish
from celery_statemanager.integration.outbox.making import REJECTED, binding_in
from celery_statemanager.integration.outbox.names import REFUSALS, PublisherName, process_name, publisher_name
from celery_statemanager.records import (
    CALLBACK_ROW,
    Cell,
    Claimed,
    ClaimRequest,
    JobRef,
    Returned,
    Write,
    WriteReply,
)
from celery_statemanager.retention import current
from celery_statemanager.texts import describe

logger = logging.getLogger(__name__)

FEWEST, MOST = 100, 1_000
"""Limits for the number of rows that are claimed at once. If the publisher dies, they may be published again."""

SECONDS = 0.25
"""Approximate seconds for which the rows of one claim are published: claims are stored, and stores differ in speed."""

MaySend = Callable[[str], bool]
"""A function that returns whether this app may send messages of the task of a name."""


def _always(_: str) -> bool:
    return True


def write(
    tracker: Tracker,
    ref: JobRef,
    request: Write,
    call: Callable[[], WriteReply] | None = None,
    *,
    value: str | None = None,
    may_send: MaySend = _always,
) -> WriteReply:
    """Write a cell, and publish what this makes due. Raises: as ``Store.write``.

    Args:
        call: makes the write; that of the store when not given.
        value: what the next stage of the row takes; see ``values.pass_on``.
    """
    with publisher_name() as name:
        is_remembered = _forget(ref, name)
        earlier, request.publisher = request.publisher, name.text
        try:
            reply = tracker.store.write(ref, request) if call is None else call()
        except StoreUnavailable:
            name.leaves_claim = True
            raise
        except REFUSALS:
            if is_remembered:
                _remember(tracker, ref, name.text)
            raise
        except (Exception, SystemExit, KeyboardInterrupt):  # the write is repeated, or the process ends
            raise
        except BaseException:  # the timeout of a greenlet, whose process goes on
            _take_over_later(tracker, ref, name.text)
            raise
        publish_decided(tracker, ref, reply.decided, may_send)
        note_end(tracker, ref, request, reply.cell, may_send)
        publisher = _Publisher(tracker, ref, name, may_send)
        if reply.claimed and request.next_is_due:
            publisher.publish_next(request, reply.cell, value)
        elif reply.claimed:
            publisher.publish_claimed(reply.claimed, reply.again)
        if (reply.claimed or is_remembered) and not name.leaves_claim:
            _remember(tracker, ref, name.text)
            if earlier is not None and not reply.changed:  # its response was lost, and its claim is published now
                _remember(tracker, ref, earlier)
    return reply


def _take_over_later(tracker: Tracker, ref: JobRef, name: str) -> None:
    """Publish what an interrupted write may have claimed, after the thread that made it has given up."""

    def take_over() -> None:
        if publish_due(tracker, ref, dead=[name], seconds=0.0) is None:
            raise StoreUnavailable(f"the claim of {name} is not taken over")

    key = leases.cell_name(ref, "outbox", CALLBACK_ROW), name
    tracker.backlog.put(key, take_over, {"job_id": ref.key.job_id})


def publish_due(
    tracker: Tracker,
    ref: JobRef,
    *,
    dead: Iterable[str] = (),
    ended: Iterable[str] = (),
    seconds: float = math.inf,
) -> int | None:
    """Claim and publish all messages that are due, or as many as may be in flight; return their number.

    What cannot be published because the broker or the store fails is left to the sweep. None is returned if nothing
    was claimed because of an error: the claims of dead publishers are then still theirs.

    Args:
        dead: publishers that have died; what they had claimed last is published again unless it has begun.
        ended: publishers that have ended and had published what they had claimed.
        seconds: about how long this takes at most; the rest is left to the sweep.
    """
    with publisher_name() as name:
        _forget(ref, name)
        return _Publisher(tracker, ref, name).publish_due(frozenset(dead), frozenset(ended), seconds)


_claims: dict[JobRef, tuple[Tracker, set[str]]] = {}
"""For the most recent jobs, the names under which this process has published what it claimed without a lease."""

MOST_JOBS = 1_000
"""Maximum number of jobs in ``_claims``."""


def _remember(tracker: Tracker, ref: JobRef, name: str) -> None:
    _claims.setdefault(ref, (tracker, set()))[1].add(name)  # atomic: other threads use it too
    if len(_claims) > MOST_JOBS:
        _claims.pop([*_claims][0], None)  # noqa: RUF015 - an iterator fails if another thread adds a job


def _forget(ref: JobRef, name: PublisherName) -> bool:
    """Remove a name before its use, so that no other thread releases its claim. Return whether it was stored."""
    _, names = _claims.get(ref, (None, set()))
    is_remembered = name.text in names
    names.discard(name.text)
    return is_remembered


def release_claims() -> None:
    """Remove the claims that this process has published, before it ends.

    Otherwise a sweep would have to assume that the process has died and had not published them.
    """
    process = process_name()
    for ref, (tracker, names) in [*_claims.items()]:
        _claims.pop(ref, None)
        own = frozenset(name for name in names if name.startswith(f"{process}."))  # not those of its parent
        request = ClaimRequest(publisher=f"{process}.end", limit=0, ended=own)
        with suppress(JobNotFound, StoreError):
            tracker.store.claim(ref, request)


def _next_limit(limit: int, seconds: float) -> int:
    """Return how many rows to claim next, given the time that the last ones took."""
    return max(FEWEST, min(MOST, round(limit * SECONDS / max(seconds, 0.001))))


class _Publisher:
    """Publishes messages of one job from one thread. It raises no errors, because a sweep publishes what is left."""

    def __init__(self, tracker: Tracker, ref: JobRef, name: PublisherName, may_send: MaySend = _always) -> None:
        self._tracker = tracker
        self._ref = ref
        self._name = name
        self._may_send = may_send
        self._log_extra = {"job_id": ref.key.job_id}
        self._left = Returned()
        """The claimed rows that are not published yet."""
        self._has_claimed = False
        """Whether a claim was made, or the job is gone, so that none is left to make."""

    def publish_due(self, dead: frozenset[str], ended: frozenset[str], seconds: float) -> int | None:
        published, limit, end = 0, FEWEST, time.monotonic() + seconds
        with self._leaving_failures(), self._tracker.app.producer_or_acquire() as producer:
            while True:
                began = time.monotonic()
                claimed = self._claim(limit if began < end else 0, dead, ended)
                if not claimed.rows:
                    break
                published += self._publish_all(claimed.rows, claimed.again, producer)
                dead = ended = frozenset()
                limit = _next_limit(limit, time.monotonic() - began)
        return published if self._has_claimed else None

    def _claim(self, limit: int, dead: frozenset[str], ended: frozenset[str]) -> Claimed:
        lease = self._tracker.settings.lease
        request = ClaimRequest(publisher=self._name.text, limit=limit, lease=lease, dead=dead, ended=ended)
        claimed = self._tracker.store.claim(self._ref, request)
        self._has_claimed = True
        return claimed

    def _may_send_all(self, rows: IndexSet) -> bool:
        """Return whether this app may send the messages of rows, as their first stages show; else give them back."""
        if self._may_send is _always:
            return True
        store, ref = self._tracker.store, self._ref
        if all(self._may_send(self._tracker.blocks.messages(store, ref, row)[0]["task"]) for row in rows):
            return True
        self._give_back()
        return False

    def publish_claimed(self, rows: IndexSet, again: IndexSet) -> None:
        """Publish rows that this thread has claimed."""
        self._left = Returned(again, rows.without(again))
        with self._leaving_failures(), self._tracker.app.producer_or_acquire() as producer:
            if self._may_send_all(rows):
                self._publish_all(rows, again, producer)

    def publish_next(self, finished: Write, cell: Cell, value: str | None) -> None:
        """Publish the stage after the one that a write has finished, after the write has claimed the row for it.

        Args:
            cell: that of the finished stage.
        """
        row = finished.task_index
        self._left = Returned(begun=IndexSet([row]))
        with self._leaving_failures(), self._tracker.app.producer_or_acquire() as producer:
            if not self._may_send_all(self._left.begun):
                return
            stages = self._tracker.blocks.messages(self._tracker.store, self._ref, row)
            number = next(n for n, stage in enumerate(stages) if binding_in(stage).tag == finished.tag) + 1
            try:
                message = message_of(self._tracker.app, stages[number], value)
                if cell.generation > 1:  # its earlier messages are stale
                    tag = binding_in(message).tag
                    message = numbered(
                        self._tracker.app, message, self._tracker.store.get_cell(self._ref, tag, row) or Cell()
                    )
            except Unpublishable as error:
                self._reject(error.binding, str(error))
            else:
                self._send(message, producer)

    def _publish_all(self, rows: IndexSet, again: IndexSet, producer: Any) -> int:
        published = 0
        self._left = Returned(again, rows.without(again))
        for row in rows:
            stages = self._tracker.blocks.messages(self._tracker.store, self._ref, row)
            try:
                message = self._due_again(stages, row) if row in again else stages[0]
            except Unpublishable as error:
                self._reject(error.binding, str(error))
                message = None
            if message is not None:
                self._send(message, producer)
                published += 1
            self._left = self._left.minus(IndexSet([row]))
        return published

    def _due_again(self, stages: list[Envelope], row: int) -> Envelope | None:
        """Return the message of a row that was claimed before; None if none is due. Raises: Unpublishable."""
        found = due_stage(self._tracker, self._ref, stages, row)
        if found is None:
            return None
        number, cell = found
        if current(self._tracker.store, self._ref).cancelled:
            publication.cancel(self._tracker, binding_in(stages[number]), self._publish_decided)
            return None
        return message_again(self._tracker, self._ref, stages, number, cell)

    def _send(self, message: Envelope, producer: Any) -> None:
        """Publish a message. End the row if the message can never be published."""
        if REJECTED in message:
            self._reject(binding_in(message), message[REJECTED])
            return
        connection = producer.connection
        try:
            publish(self._tracker.app, message, producer)
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors):
            raise  # the broker is away, full, or wrongly configured
        except SoftTimeLimitExceeded:
            raise  # of the task whose end publishes it
        except Exception as error:  # noqa: BLE001 - brokers and their clients raise any error
            self._reject(binding_in(message), f"not published: {describe(error)}")

    def _reject(self, binding: Binding, message: str) -> None:
        publication.reject(self._tracker, binding, message, self._publish_decided)

    def _publish_decided(self, decided: tuple[str, ...]) -> None:
        publish_decided(self._tracker, self._ref, decided)

    @contextmanager
    def _leaving_failures(self) -> Iterator[None]:
        """Return what this thread has claimed and cannot publish now."""
        try:
            yield
        except JobNotFound as error:
            self._has_claimed = True
            logger.info("not published: %s", error, extra=self._log_extra)
        except Exception as error:  # noqa: BLE001 - brokers and their clients raise any error
            text = "cannot publish messages of job %r now, a sweep will: %s"
            logger.warning(text, self._ref.key.job_id, describe(error), extra=self._log_extra)
            self._give_back()
        except (SystemExit, KeyboardInterrupt):  # the process ends
            raise
        except BaseException:  # the timeout of a greenlet, whose process goes on
            self._give_back()
            raise

    def _give_back(self) -> None:
        """Return the rows that are left. A claim whose response was lost stays until its lease ends."""
        self._name.leaves_claim = True
        if not self._left:
            return
        _, names = _claims.get(self._ref, (None, set()))
        names.discard(self._name.text)
        store, ref = self._tracker.store, self._ref
        returned = self._unpublished()
        request = ClaimRequest(publisher=self._name.text, limit=0, returned=returned)  # may be repeated
        key = leases.cell_name(ref, "outbox", CALLBACK_ROW), self._name.text
        with suppress(StoreError):
            self._tracker.backlog.now_or_later(key, lambda: store.claim(ref, request), self._log_extra)

    def _unpublished(self) -> Returned:
        """Return the rows that are not published, divided into those that have begun and those that wait.

        A row that was claimed before may not have begun. If the store fails, it counts as begun: it is published even
        if the job is paused, and goes back when it begins.
        """
        store, ref, waiting = self._tracker.store, self._ref, []
        with suppress(StoreError):
            for row in self._left.begun:
                first = binding_in(self._tracker.blocks.messages(store, ref, row)[0])
                if (store.get_cell(ref, first.tag, row) or Cell()).waiting:
                    waiting.append(row)
        never_began = IndexSet(waiting)
        return Returned(waiting=never_began).plus(self._left.minus(never_began))
