"""Wake the asynchronous readers of one source from any thread, in turns, so that other tasks are not delayed."""

from __future__ import annotations

import asyncio
from collections import deque

WOKEN_AT_ONCE = 32
"""Maximum number of subscribers that run in one iteration of an event loop."""


class Turns:
    """The readers of one source, in any event loops."""

    def __init__(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, _LoopTurns] = {}

    async def take(self, *, after_change: bool) -> None:
        """Wait for a turn, or for a change and then for a turn."""
        loop = asyncio.get_running_loop()
        await self._loops.setdefault(loop, _LoopTurns(loop)).take(after_change=after_change)

    def notify(self) -> None:
        """Report a change to all readers, from any thread."""
        for loop, turns in list(self._loops.items()):
            if not turns.notify():
                self._loops.pop(loop, None)


class _LoopTurns:
    """The readers in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ready: deque[asyncio.Future[None]] = deque()
        self._is_notified = self._is_running = False

    async def take(self, *, after_change: bool) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        (self._waiting if after_change else self._ready).append(future)
        if not after_change:
            self._schedule()
        try:
            await future
        finally:
            if future.cancelled() and future in self._waiting:
                self._waiting.remove(future)

    def notify(self) -> bool:
        """Report a change, from any thread. Return False if the loop is closed."""
        if not self._is_notified:
            self._is_notified = True
            try:
                self._loop.call_soon_threadsafe(self._end_waiting)
            except RuntimeError:
                return False
        return True

    def _end_waiting(self) -> None:
        self._is_notified = False
        self._ready.extend(self._waiting)
        self._waiting.clear()
        self._schedule()

    def _schedule(self) -> None:
        if self._ready and not self._is_running:
            self._is_running = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._is_running = False
        for _ in range(min(WOKEN_AT_ONCE, len(self._ready))):
            future = self._ready.popleft()
            if not future.done():
                future.set_result(None)
        self._schedule()
