"""Requests that arrive while a read runs share the next one."""

from __future__ import annotations

import asyncio
import threading

import pytest
from web_kit import PATIENCE

from celery_statemanager.web.coalescing import SharedReads


class Reads:
    """Reads that wait for ``go``. Each returns its number.

    Attributes:
        began: released when a read has begun.
    """

    def __init__(self):
        self.count = 0
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.error = None

    def __call__(self):
        self.count += 1
        number = self.count
        self.began.release()
        assert self.go.acquire(timeout=PATIENCE)
        if self.error is not None:
            raise self.error
        return str(number).encode()

    async def begun(self):
        assert await asyncio.to_thread(self.began.acquire, timeout=PATIENCE)


def run(body):
    return asyncio.run(asyncio.wait_for(body, PATIENCE))


def test_requests_that_arrive_while_a_read_runs_share_one_later_read():
    async def body():
        shared, reads = SharedReads(), Reads()
        first = asyncio.create_task(shared.get("grid", reads))
        await reads.begun()
        later = [asyncio.create_task(shared.get("grid", reads)) for _ in range(50)]
        reads.go.release()
        assert await first == b"1"
        await reads.begun()
        latest = asyncio.create_task(shared.get("grid", reads))
        reads.go.release(2)
        assert {*await asyncio.gather(*later)} == {b"2"}
        assert await latest == b"3"

    run(body())


def test_reads_of_other_keys_run_at_the_same_time():
    async def body():
        shared, reads = SharedReads(), Reads()
        both = [asyncio.create_task(shared.get(key, reads)) for key in ("scan", "hash")]
        await reads.begun()
        await reads.begun()
        reads.go.release(2)
        assert sorted(await asyncio.gather(*both)) == [b"1", b"2"]

    run(body())


def test_the_end_of_one_request_does_not_end_the_read_of_another():
    async def body():
        shared, reads = SharedReads(), Reads()
        leaving, staying = (asyncio.create_task(shared.get("grid", reads)) for _ in range(2))
        await reads.begun()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        reads.go.release()
        assert await staying == b"1"

    run(body())


def test_an_error_reaches_all_requests_of_a_read_and_the_next_read_is_made():
    async def body():
        shared, reads = SharedReads(), Reads()
        reads.error = OSError("the store is away")
        failing = [asyncio.create_task(shared.get("grid", reads)) for _ in range(3)]
        await reads.begun()
        following = asyncio.create_task(shared.get("grid", reads))
        reads.go.release()
        for each in failing:
            with pytest.raises(OSError, match="away"):
                await each
        await reads.begun()
        reads.error = None
        reads.go.release()
        assert await following == b"2"

    run(body())
