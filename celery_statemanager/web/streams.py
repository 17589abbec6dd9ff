"""A response of server-sent events that ends when its client disconnects or reads too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT = 8.0
"""Maximum seconds between two comments, which prevent that proxies or clients close an idle stream."""

LONGEST_SEND = 20.0
"""Seconds for which one message may wait for a slow client before the stream ends."""

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Messages = AsyncIterator[bytes]

_LINE_BREAKS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}
"""The line breaks of Unicode that JSON does not escape. Clients that split texts by lines would end an event there."""


def message(event: str, data: str, *, cursor: str | None = None) -> bytes:
    """Return one event of a stream. ``data`` is JSON text without line breaks."""
    id_line = "" if cursor is None else f"id: {cursor}\n"
    data = data if data.isascii() else data.translate(_LINE_BREAKS)
    return f"event: {event}\n{id_line}data: {data}\n\n".encode("utf-8", "backslashreplace")


def retry(least: float = 2.0, most: float = 4.0) -> bytes:
    """Return the message that sets the reconnection time: a random one, so that clients do not reconnect together."""
    return f"retry: {round(1_000 * random.uniform(least, most))}\n\n".encode()


class EventStream(Response):
    """Sends messages until they end, the client disconnects, or ``lifetime`` has passed.

    Args:
        messages: an iterator, which is closed at the end even if it waits for a message.
        alive: called at each heartbeat. If it returns a message, the stream ends with this message.
        lifetime: seconds after which the stream ends; None for no limit.
        close: called at the end.
    """

    def __init__(
        self,
        messages: Messages,
        alive: Callable[[], bytes | None] = lambda: None,
        lifetime: float | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._messages = messages
        self._alive = alive
        self._lifetime = lifetime
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(_Sender(send), scope["method"] == "HEAD"))
        disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
        done: set[asyncio.Future[None]] = set()
        try:
            done, _ = await asyncio.wait(
                {sending, disconnect}, timeout=self._lifetime, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (sending, disconnect):
                task.cancel()
            await asyncio.gather(sending, disconnect, return_exceptions=True)
            await _close(self._messages)
            self._close()
        if disconnect in done or (sending in done and sending.cancelled()):
            return  # the client has disconnected, or reads too slowly
        error = None if sending.cancelled() else sending.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            last = send({"type": "http.response.body", "body": b"", "more_body": False})
            await asyncio.wait_for(last, LONGEST_SEND)

    async def _send_all(self, sender: _Sender, is_head: bool) -> None:
        await sender.start(self.raw_headers)
        if is_head:
            return
        await sender.send(retry())
        heartbeats = asyncio.ensure_future(self._send_heartbeats(sender))
        messages = asyncio.ensure_future(self._forward(sender))
        try:
            done, _ = await asyncio.wait({heartbeats, messages}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            heartbeats.cancel()
            messages.cancel()
            await asyncio.gather(heartbeats, messages, return_exceptions=True)

    async def _forward(self, sender: _Sender) -> None:
        async for each in self._messages:
            await sender.send(each)

    async def _send_heartbeats(self, sender: _Sender) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT * random.uniform(0.8, 1.0))
            last = self._alive()
            await sender.send(b":\n\n" if last is None else last)
            if last is not None:
                return


class _Sender:
    """Sends one message at a time, and cancels the current task if the client does not read a message in time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, body: bytes) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        async with self._lock:
            timer = loop.call_later(LONGEST_SEND, task.cancel)
            try:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            finally:
                timer.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close(messages: Messages) -> None:
    close = getattr(messages, "aclose", None)
    if close is not None:
        await close()
