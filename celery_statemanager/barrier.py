"""Wait until every row of a tag has reached a status (rule R8), or until a job has settled."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TypeVar

from celery_statemanager import aggregate
from celery_statemanager.errors import StoreUnavailable, SynchronizeFailed, SynchronizeTimeout
from celery_statemanager.feed import NO_CELLS, Feed
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRef
from celery_statemanager.retention import current
from celery_statemanager.stores.base import Store

around_waiting: list[Callable[[], AbstractContextManager[object]]] = []
"""Context managers in which a barrier blocks. The Celery integration adds one for the tasks of a worker."""

Result = TypeVar("Result")

_LONGEST_READ = 3600.0
"""Maximum seconds of one read if there is no timeout."""


def synchronize(
    store: Store, ref: JobRef, tag: str, status: int, *, timeout: float | None = None, fail_fast: bool = True
) -> list[State]:
    """Wait until every expected row of ``tag`` has at least ``status``, and return one state per row.

    Raises: SynchronizeFailed if a row has a negative status and ``fail_fast`` is set; SynchronizeTimeout after
    ``timeout`` seconds; JobNotFound.
    """
    scope, lowest = Scope(tag=tag), None

    def states_if_reached() -> list[State] | None:
        nonlocal lowest
        lowest = store.lowest(ref, scope)
        if lowest.status >= status:
            return _states_of_rows(store, ref, scope)
        if lowest.failed and fail_fast:
            raise SynchronizeFailed(ref.key.job_id, tag, status, lowest)
        return None

    # Without this filter, N barriers would read after each of N changes: N² reads.
    def may_decide(state: State) -> bool:
        was_lowest = lowest is None or state.task_index == lowest.task_index
        return (state.status >= status and was_lowest) or (state.failed and fail_fast)

    states = _wait_for(states_if_reached, may_decide, store, ref, scope, timeout)
    if states is None:
        states = _states_of_rows(store, ref, scope)
        missing = IndexSet(state.task_index for state in states if state.status < status)
        if missing:
            raise SynchronizeTimeout(ref.key.job_id, tag, status, str(missing), states, timeout)
    return states


def wait_settled(store: Store, ref: JobRef, timeout: float | None = None) -> bool:
    """Wait until the present generation of a job has settled or another one has begun.

    Returns: False if this has not happened after ``timeout`` seconds. Raises: JobNotFound.
    """
    first = current(store, ref)

    def has_settled() -> bool | None:
        job, columns = store.column_summaries(ref)
        return job.generation.number > first.generation.number or aggregate.settled(job, columns) or None

    scope = Scope() if first.plan is None else NO_CELLS
    return _wait_for(has_settled, lambda _: True, store, ref, scope, timeout) is True


def wait_until(
    store: Store, ref: JobRef, query: Callable[[], Result | None], timeout: float | None = None
) -> Result | None:
    """Return the first result of a query on a job that is not None, or None after ``timeout`` seconds.

    The query runs at once and after each change of the job's record. Raises: JobNotFound; as the query.
    """
    return _wait_for(query, lambda _: True, store, ref, NO_CELLS, timeout)


def _wait_for(
    query: Callable[[], Result | None],
    may_decide: Callable[[State], bool],
    store: Store,
    ref: JobRef,
    scope: Scope,
    timeout: float | None,
) -> Result | None:
    """Return the first result of ``query`` that is not None, or None after ``timeout`` seconds.

    The query runs at once, then after each change that ``may_decide`` accepts, and after each reconnection.

    Raises: SubscriptionLost if the store stays unavailable.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with ExitStack() as stack, closing(Feed(store, ref, scope)) as feed:
        result = _run_query(feed, query)
        if result is None:
            for context in around_waiting:
                stack.enter_context(context())
        while result is None and (deadline is None or time.monotonic() < deadline):
            batch = feed.read(_LONGEST_READ if deadline is None else deadline - time.monotonic())
            if feed.connected and (batch.job_changed or batch.resync or any(map(may_decide, batch.states))):
                result = _run_query(feed, query)
        return result


def _run_query(feed: Feed, query: Callable[[], Result | None]) -> Result | None:
    try:
        return query()
    except StoreUnavailable as error:
        feed.mark_lost(error)
        return None


def _states_of_rows(store: Store, ref: JobRef, scope: Scope) -> list[State]:
    job = current(store, ref)
    tag = scope.tag or ""
    written = {state.task_index: state for state in store.list_states(ref, scope)}
    return [written.get(row) or aggregate.missing_state(job, tag, row) for row in aggregate.expected_rows(job, tag)]
