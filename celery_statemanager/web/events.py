"""The events of a job: changes of its cells, or summaries, until it settles."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from celery_statemanager import aggregate
from celery_statemanager.asynchronous import AsyncSubscription
from celery_statemanager.codec import compact
from celery_statemanager.cursor import Cursor
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable, SubscriptionLost
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.limits import invalid_since, short_repr
from celery_statemanager.models import State
from celery_statemanager.overview import overview
from celery_statemanager.web.errors import UNREACHABLE, WebError, bad_request, public_message
from celery_statemanager.web.site import Site
from celery_statemanager.web.streams import EventStream, message, retry
from celery_statemanager.web.summaries import feeds
from celery_statemanager.web.wire import encoded, state_to_json

_END = re.compile(r"settled\.([0-9]{1,9})/(.*)", re.ASCII | re.DOTALL)

_NO_POSITION = "none:-"
"""A cursor that belongs to no job. A subscription that continues at it begins with a resync."""


class Start(NamedTuple):
    """The position at which a client continues.

    Attributes:
        cursor: that of the last cell that it has received; None if it has received no cell.
        settled: the generation whose end it has received; 0 if it has received none.
        incarnation: that of the job that it has read; None if the client is new.
    """

    cursor: str | None = None
    settled: int = 0
    incarnation: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> Start:
        """Parse the id of an event. Raises: ValueError."""
        if not text:
            return cls()
        end = _END.fullmatch(text)
        cursor, generation = (text, 0) if end is None else (end[2], int(end[1]))
        if generation and re.fullmatch(r"[\w-]{0,64}", cursor, re.ASCII):  # without a cell, as in a stream of summaries
            return cls(None, generation, cursor)
        try:
            return cls(cursor, generation, Cursor.parse(cursor).incarnation)
        except ValueError:
            raise invalid_since(text) from None


def _end_cursor(generation: object, last: str) -> str:
    """Return the id of the event ``settled``, which ``Start.parse`` reads; ``last`` is a cursor or an incarnation."""
    return f"settled.{generation}/{last}"


async def stream_events(site: Site, request: Request) -> Response:
    """Return the events of a job: ``view=cells`` or, by default, ``view=summary``."""
    query = request.query_params
    view = query.get("view", "summary")
    if view not in {"cells", "summary"}:
        raise bad_request(f"view must be cells or summary, not {short_repr(view)}")
    try:
        start = Start.parse(request.headers.get("last-event-id", query.get("since")))
    except ValueError as error:
        raise bad_request(error, "cursor") from None
    if "wsgi_environ" in request.scope["outer"]:
        raise WebError(404, "no_events", "events need an ASGI server; request the job every few seconds instead")
    grant = site.access.grant(request)
    lifetime = None if grant is None else max(0.0, grant.expires_at - time.time())
    try:
        job = await site.find(request)
        if start.settled and await run_in_threadpool(_is_at_end, job, start):
            return Response(status_code=204)
        if view == "summary":
            return EventStream(_summaries(job), lifetime=lifetime)
        if start.incarnation is not None and start.cursor is None:  # it has received no cell
            start = Start(_NO_POSITION, start.settled)
        cells = Cells(job, start.cursor)
        if request.method == "HEAD":
            return EventStream(cells.messages())
        await cells.open()
    except (StoreUnavailable, SubscriptionLost) as error:
        return EventStream(_unavailable(public_message(error)), lifetime=lifetime)
    return EventStream(cells.messages(), cells.check, lifetime, cells.close)


def _is_at_end(job: Job, start: Start) -> bool:
    """Return whether a client has received all events of the current generation. Raises: StoreError."""
    record, columns = job._tracker.store.column_summaries(job._record.ref)
    is_same = (record.incarnation, record.generation.number) == (start.incarnation, start.settled)
    return is_same and aggregate.settled(record, columns)


async def _unavailable(text: str) -> AsyncIterator[bytes]:
    yield _unavailable_message(text)


def _unavailable_message(text: str) -> bytes:
    return retry(5.0, 15.0) + message("unavailable", compact({"message": text}))


async def _summaries(job: Job) -> AsyncIterator[bytes]:
    """Yield the summaries of a job as they change, and then the last event."""
    store, ref = job._tracker.store, job._record.ref
    feed = feeds.acquire(store, ref)
    try:
        number = 0
        while True:
            shown = feed.snapshot
            if shown.number > number:
                number = shown.number
                yield message("summary", shown.text)
            if shown.end == "unavailable":
                yield _unavailable_message(str((shown.detail or {}).get("message")))
            elif shown.end is not None:
                detail = shown.detail or {}
                cursor = _end_cursor(detail["generation"], ref.incarnation) if shown.end == "settled" else None
                yield message(shown.end, compact(detail), cursor=cursor)
            if shown.end is not None:
                return
            if feed.snapshot is shown:
                await feed.turns.take(after_change=True)
    finally:
        feeds.release(store, ref, feed)


class Cells:
    """The changes of the cells of a job after a cursor, until the job settles."""

    def __init__(self, job: Job, since: str | None) -> None:
        self._job = job
        self._last = since
        self._events = self._subscribe()

    def _subscribe(self) -> AsyncSubscription:
        return self._job.asubscribe(until_settled=True, since=self._last)

    async def open(self) -> None:
        """Open the subscription. Raises: WebError – the cursor is invalid; JobNotFound, StoreError."""
        try:
            await self._events.__aenter__()
        except ValueError as error:
            raise bad_request(error, "cursor") from None

    def close(self) -> None:
        """End the subscription."""
        self._events.close()

    def check(self) -> bytes | None:
        """Return the last message if the store is unavailable."""
        return None if self._events.connected else _unavailable_message(UNREACHABLE)

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the messages of the stream."""
        try:
            while True:
                while batch := await self._events.next_batch():
                    self._last = batch[-1].cursor
                    yield b"".join(_encoded(each.state, each.cursor, each.resync) for each in batch)
                end = await run_in_threadpool(self._end)
                if end is not None:
                    yield end
                    return
                await self._events.aclose()  # a rerun has begun
                self._events = self._subscribe()
        except JobNotFound:
            yield message("deleted", "{}")
        except (StoreError, SubscriptionLost) as error:
            yield _unavailable_message(public_message(error))
        finally:
            await self._events.aclose()

    def _end(self) -> bytes | None:
        """Return the last message; None if the job has not settled. Raises: JobNotFound, StoreError."""
        shown = overview(self._job._tracker.store, self._job._record.ref)
        if not aggregate.settled(shown.job, shown.columns):
            return None
        number = shown.job.generation.number
        cursor = _end_cursor(number, self._last or shown.job.incarnation)
        return message("settled", compact({"generation": number, "phase": shown.phase.value}), cursor=cursor)


@lru_cache(maxsize=128)  # few, because a message and its state may take 64 KiB each, and outlive all clients
def _encoded(state: State, cursor: str, resync: bool) -> bytes:
    """Return the message of one event. Clients of a job that read it at about the same time share it."""
    if resync:
        return message("reset", "{}", cursor=cursor)
    return message("state", encoded(state_to_json(state)).decode(), cursor=cursor)
