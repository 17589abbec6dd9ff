"""Requests that arrive while the same read runs share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool


class SharedReads:
    """Reads of a store whose results several requests get.

    A request never gets the result of a read that began before it. While a read runs, all further requests with the
    same key wait for one other read, however many they are. Requests in another event loop have reads of their own.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[bytes]] = {}
        self._waiting: dict[Hashable, asyncio.Task[bytes]] = {}

    async def get(self, key: Hashable, read: Callable[[], bytes]) -> bytes:
        """Return what ``read`` returns, which is called in a thread.

        Args:
            key: requests with the same key may share a read.

        Raises: what ``read`` raises.
        """
        key = asyncio.get_running_loop(), key
        task = self._waiting.get(key)
        if task is None:
            task = asyncio.create_task(self._read(key, read, self._running.get(key)))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all requests may have ended
            self._waiting[key] = task
        return await asyncio.shield(task)  # the end of one request does not end the read of the others

    async def _read(self, key: Hashable, read: Callable[[], bytes], previous: asyncio.Task[bytes] | None) -> bytes:
        if previous is not None:
            with suppress(Exception):
                await asyncio.shield(previous)
        task = self._running[key] = self._waiting.pop(key)
        try:
            return await run_in_threadpool(read)
        finally:
            if self._running.get(key) is task:
                del self._running[key]
