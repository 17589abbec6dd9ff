"""Asynchronous forms of blocking calls. The first call imports ``asyncio``, because most processes do not need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from celery_statemanager.feed import NO_CELLS
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.base import Store

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run a call in a thread of the event loop's pool, and return what it returns."""
    import asyncio

    return await asyncio.to_thread(call, *args, **options)


async def wait_settled(store: Store, job: JobRecord, seconds: float | None) -> bool:
    """Return True when the current generation of a job has settled, another one has begun, or the job was deleted.

    Return False after the given seconds; None waits without a limit. All callers in this process share one watch of
    the job. Raises: JobNotFound, StoreError, SubscriptionLost.
    """
    import asyncio

    from celery_statemanager.asynchronous import AsyncSubscription, exhaust

    scope = Scope() if job.plan is None else NO_CELLS
    async with AsyncSubscription(store, job.ref, scope, until_settled=True) as events:
        try:
            if not events.closed:
                await asyncio.wait_for(exhaust(events), seconds)
        except asyncio.TimeoutError:
            return False
        return True
