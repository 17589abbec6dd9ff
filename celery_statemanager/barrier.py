"""Wait until every row of a tag has come this far (rule R8), or until a job has settled."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from celery_statemanager import aggregate
from celery_statemanager.errors import StoreUnavailable, SynchronizeFailed, SynchronizeTimeout
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRef
from celery_statemanager.retention import current
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import NO_CELLS, Feed

before_waiting: list[Callable[[], None]] = []
"""Called whenever a barrier is about to block; the Celery floor warns from here inside a worker's task."""

Answer = TypeVar("Answer")

_SLICE = 3600.0


def synchronize(
    store: Store, ref: JobRef, tag: str, status: int, *, timeout: float | None = None, fail_fast: bool = True
) -> list[State]:
    """Return one state per expected row once each has at least ``status``.

    Raises: SynchronizeFailed – a row is negative (unless ``fail_fast`` is False); SynchronizeTimeout; JobNotFound.
    """
    scope, least = Scope(tag=tag), None

    def rows_once_reached() -> list[State] | None:
        nonlocal least
        least = store.lowest(ref, scope)
        if least.status >= status:
            return _rows(store, ref, scope)
        if least.failed and fail_fast:
            raise SynchronizeFailed(ref.key.job_id, tag, status, least)
        return None

    def may_decide(state: State) -> bool:  # N barriers that looked after each of N changes would look N² times
        held_it_up = least is None or state.task_index == least.task_index
        return (state.status >= status and held_it_up) or (state.failed and fail_fast)

    states = _until(rows_once_reached, may_decide, store, ref, scope, timeout)
    if states is None:
        states = _rows(store, ref, scope)
        missing = IndexSet(state.task_index for state in states if state.status < status)
        if missing:
            raise SynchronizeTimeout(ref.key.job_id, tag, status, str(missing), states, timeout)
    return states


def wait_settled(store: Store, ref: JobRef, timeout: float | None = None) -> bool:
    """Return True once the job has settled, False if it had not after ``timeout`` seconds. Raises: JobNotFound."""
    planned = store.column_summaries(ref)[0].plan is not None

    def has_settled() -> bool | None:
        return aggregate.settled(*store.column_summaries(ref)) or None

    scope = NO_CELLS if planned else Scope()
    return _until(has_settled, lambda _: True, store, ref, scope, timeout) is True


def _until(
    ask: Callable[[], Answer | None],
    may_decide: Callable[[State], bool],
    store: Store,
    ref: JobRef,
    scope: Scope,
    timeout: float | None,
) -> Answer | None:
    """Ask at once, then after every change that may decide, until there is an answer; None once time has run out.

    A store that fails meanwhile is asked again when it is back. Raises: SubscriptionLost – it does not come back.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with closing(Feed(store, ref, scope)) as feed:
        answer = _asked(feed, ask)
        if answer is None:
            for guard in before_waiting:
                guard()
        while answer is None and (deadline is None or time.monotonic() < deadline):
            batch = feed.read(_SLICE if deadline is None else deadline - time.monotonic())
            if feed.connected and (batch.job_changed or batch.resync or any(map(may_decide, batch.states))):
                answer = _asked(feed, ask)
        return answer


def _asked(feed: Feed, ask: Callable[[], Answer | None]) -> Answer | None:
    try:
        return ask()
    except StoreUnavailable as error:
        feed.lose(error)
        return None


def _rows(store: Store, ref: JobRef, scope: Scope) -> list[State]:
    job = current(store, ref)
    tag = scope.tag or ""
    written = {state.task_index: state for state in store.list_states(ref, scope)}
    return [written.get(row) or aggregate.missing_state(job, tag, row) for row in aggregate.expected_rows(job, tag)]
