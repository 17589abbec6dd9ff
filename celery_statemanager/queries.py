"""The read operations of a Manager, over any store."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from celery_statemanager import aggregate, barrier
from celery_statemanager.limits import check_index, check_name, check_optional, check_status, check_timeout
from celery_statemanager.models import Scope, State, Summary
from celery_statemanager.records import JobRecord, JobRef
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription

if TYPE_CHECKING:
    from celery_statemanager.asynchronous import AsyncSubscription

_MOST_TAGS = 10
"""Maximum number of tags that an error names."""


class JobQueries:
    """The read operations on one incarnation of a job."""

    def __init__(self, store: Store, job: JobRecord) -> None:
        self.store = store
        self.ref: JobRef = job.ref
        self.num_tasks = job.num_tasks
        self.plan = job.plan
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def job_id(self) -> str:
        """The name of the job."""
        return self.ref.key.job_id

    @property
    def run_token(self) -> str | None:
        """The token that distinguishes this run from others of the same name."""
        return self.ref.key.run_token

    @property
    def tags(self) -> tuple[str, ...]:
        """The planned tags, in the order in which they first run; empty without a plan."""
        return self.plan.tags if self.plan else ()

    def get_state(self, tag: str | None = None, task_index: int | None = None) -> State:
        """Return one cell, or the lowest cell of a column, a row or the whole grid.

        A cell that was never written counts as NOT_STARTED. Raises: JobNotFound, TypeError; ValueError, also for a tag
        that is neither planned nor written.
        """
        state = self.store.lowest(self.ref, self._scope(tag, task_index))
        if not state.version:
            self._check_known(tag)
        return state

    def list_states(self, tag: str | None = None, task_index: int | None = None) -> list[State]:
        """Return the written cells in the order (timestamp, tag, task_index). Raises: as ``get_state``."""
        states = list(self.store.list_states(self.ref, self._scope(tag, task_index)))
        if not states:
            self._check_known(tag)
        return states

    def summary(self, tag: str | None = None, indexes: bool = True) -> Summary:
        """Return counts of cells and sets of rows by class: not started, running, finished, failed, not run.

        Args:
            indexes: False leaves the sets None, at a cost that does not grow with the job.

        Raises: as ``get_state``.
        """
        job, columns = self.store.column_summaries(self.ref, check_optional("tag", tag), indexes=indexes)
        if not any(any(column.tally) for column in columns):
            self._check_known(tag)
        return aggregate.summarize(job, columns, indexes=indexes)

    def subscribe(
        self,
        tag: str | None = None,
        task_index: int | None = None,
        until_settled: bool = False,
        since: str | None = None,
    ) -> Subscription:
        """Follow the written cells: the existing states, oldest first, and then changes as they happen.

        No change after the return is missed. Accepts any tag, because it may be written later.

        Args:
            until_settled: end after the last change before the job has settled or a rerun has begun.
            since: the ``cursor`` of an event of an earlier subscription to the same cells, also one in another process:
                begin with the cells that have changed since. If the store no longer knows all of them, or was restored,
                the first event has ``resync``: forget all states; a replay follows.

        Raises: JobNotFound, TypeError, ValueError, StoreError.
        """
        scope = self._scope(tag, task_index)
        subscription = Subscription(self.store, self.ref, scope, until_settled=until_settled, since=since)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def asubscribe(
        self,
        tag: str | None = None,
        task_index: int | None = None,
        until_settled: bool = False,
        since: str | None = None,
    ) -> AsyncSubscription:
        """Follow the written cells in asynchronous code, as ``subscribe`` does.

        Raises: TypeError, ValueError; when it is read, JobNotFound, StoreError, SubscriptionLost.
        """
        from celery_statemanager.asynchronous import AsyncSubscription  # it imports asyncio

        scope = self._scope(tag, task_index)
        return AsyncSubscription(self.store, self.ref, scope, until_settled=until_settled, since=since)

    def synchronize(
        self, tag: str, status: int, timeout: float | None = None, *, fail_fast: bool = True
    ) -> list[State]:
        """Block until every row expected under ``tag`` has at least ``status``, then return one state per row.

        The cost of waiting does not depend on the number of rows. The result, or that of a timeout, takes about 350
        bytes per row.

        Args:
            timeout: seconds; None means no limit.
            fail_fast: raise as soon as a row has a negative status, instead of waiting for it to recover.

        Raises: SynchronizeTimeout – with ``.states`` and ``.missing``; SynchronizeFailed; JobNotFound; TypeError;
            ValueError.
        """
        tag, status, timeout = check_name("tag", tag), check_status(status), check_timeout(timeout)
        return barrier.synchronize(self.store, self.ref, tag, status, timeout=timeout, fail_fast=fail_fast)

    def close(self) -> None:
        """Close the subscriptions that this object created. The store stays open."""
        with self._lock:
            open_ones = list(self._subscriptions)
        for subscription in open_ones:
            subscription.close()

    def _check_known(self, tag: str | None) -> None:
        """Check a tag without a written cell in the result; reads only for an unplanned tag. Raises: ValueError."""
        if tag is None or self.plan is None or tag in self.plan.columns:
            return
        _, columns = self.store.column_summaries(self.ref, tag)
        if any(any(column.tally) for column in columns) or any(self.store.list_states(self.ref, Scope(tag))):
            return
        known = ", ".join(map(repr, self.tags[:_MOST_TAGS]))
        more = len(self.tags) - _MOST_TAGS
        raise ValueError(
            f"job {self.job_id!r} has no tag {tag!r}: it is not planned and was never written; the planned tags are "
            f"{known}{f' and {more} more' if more > 0 else ''}"
        )

    def _scope(self, tag: str | None, task_index: int | None) -> Scope:
        return Scope(
            check_optional("tag", tag), None if task_index is None else check_index(task_index, self.num_tasks)
        )
