"""``Job``: the handle of a submitted job in its submitter, its callbacks, or any other process of the app."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_statemanager import barrier, completion
from celery_statemanager.awaiting import in_thread, wait_settled
from celery_statemanager.errors import WaitTimeout
from celery_statemanager.generations import RerunReport
from celery_statemanager.integration import body
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.locked import LockedProperty
from celery_statemanager.integration.outbox.member import Member, read_members
from celery_statemanager.integration.outbox.publisher import publish_due
from celery_statemanager.integration.outbox.rerun import rerun
from celery_statemanager.integration.revokes import revoke
from celery_statemanager.integration.submission.handle import JobHandle
from celery_statemanager.integration.submission.results import check_keeps_results, iterate_results, list_results
from celery_statemanager.limits import check_max_in_flight, check_message, check_timeout
from celery_statemanager.manager import Manager
from celery_statemanager.models import State, Summary
from celery_statemanager.records import LATCHES, JobRecord
from celery_statemanager.retention import change_job, current
from celery_statemanager.subscription import Subscription

if TYPE_CHECKING:
    from celery_statemanager.asynchronous import AsyncSubscription


class Job(JobHandle):
    """One incarnation of a job, readable from any process that can open its store."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The planned tags in the order of their stages."""
        return self.manager.tags

    @LockedProperty
    def manager(self) -> Manager:
        """A read-only Manager of the job."""
        return Manager(self._tracker.store, self._record)

    def get_state(self, tag: str | None = None, task_index: int | None = None) -> State:
        """Return one cell, or the lowest cell of a column, a row or the grid; see ``Manager.get_state``."""
        return self.manager.get_state(tag, task_index)

    def list_states(self, tag: str | None = None, task_index: int | None = None) -> list[State]:
        """Return the written cells; see ``Manager.list_states``."""
        return self.manager.list_states(tag, task_index)

    def summary(self, tag: str | None = None, indexes: bool = True) -> Summary:
        """Return counts and index sets; see ``Manager.summary``."""
        return self.manager.summary(tag, indexes=indexes)

    def subscribe(
        self,
        tag: str | None = None,
        task_index: int | None = None,
        until_settled: bool = False,
        since: str | None = None,
    ) -> Subscription:
        """Subscribe to cells: first their current states, then changes; see ``Manager.subscribe``."""
        return self.manager.subscribe(tag, task_index, until_settled=until_settled, since=since)

    def wait(self, timeout: float | None = None) -> Summary:
        """Block until the current generation has settled or a rerun has begun, and return the summary.

        The job has settled when every cell is final, successful or not. If a rerun has begun, it may not have settled;
        compare ``Summary.generation``.

        Args:
            timeout: seconds; None waits without a limit.

        Raises: WaitTimeout – the job did not settle in time; JobNotFound; StoreError; TypeError; ValueError.
        """
        seconds = check_timeout(timeout)
        if barrier.wait_settled(self._tracker.store, self._record.ref, seconds):
            return self.summary()
        raise WaitTimeout(self.id, seconds or 0.0, self.summary())

    def results(self, rows: str | Iterable[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Return the index and the result of each row that has finished, in row order. They are read in bounded memory.

        Rows that keep no result are left out, if only tasks with ``keep_result`` keep theirs.

        Args:
            rows: the wanted rows, for example ``"3,17-20"``; None for all.

        Raises: ResultUnavailable – the job keeps no results; ValueError – no such row; TypeError; and while they are
            read, ResultUnavailable – that of a row could not be kept; JobNotFound; StoreError.
        """
        check_keeps_results(self._record)
        return iterate_results(self._tracker, self._record, rows)

    def get(self, timeout: float | None = None) -> list[Any]:
        """Wait as ``wait`` does, and return the results of all rows in row order.

        Args:
            timeout: seconds; None waits without a limit.

        Raises: TaskFailed – the first row that has not finished; if a rerun has begun, this row may still run;
            ResultUnavailable – the job keeps no results, or the result of a row could not be kept; WaitTimeout;
            JobNotFound; StoreError; TypeError; ValueError.
        """
        check_keeps_results(self._record)
        self.wait(timeout)
        return list_results(self._tracker, self._record)

    def body_result(self, timeout: float | None = None) -> Any:
        """Wait until the body of a chord that was submitted has ended, and return what it has returned.

        If a rerun begins meanwhile, this remains the body of the generation that was current at the call.

        Args:
            timeout: seconds; None waits without a limit.

        Raises: TaskFailed – the first row that has not finished, if the job has settled without success, or the body;
            ResultUnavailable – the job has no body, or its result could not be kept; WaitTimeout; JobNotFound;
            StoreError; TypeError; ValueError.
        """
        return body.wait_for_result(self._tracker, self._record, timeout)

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel tasks that have not begun, and stop running tasks at their next state write.

        Returns: False if the job has settled or is already cancelled. Raises: JobNotFound, StoreError.
        """
        if not completion.cancel(self._tracker.store, self._record.ref, check_message(reason)):
            return False
        publish_decided(self._tracker, self._record.ref, LATCHES)
        revoke(self._tracker, self._record.ref)
        return True

    @property
    def max_in_flight(self) -> int | None:
        """The maximum number of rows that are with the broker or running; None for no limit.

        Raises: JobNotFound, StoreError.
        """
        return current(self._tracker.store, self._record.ref).max_in_flight

    def set_max_in_flight(self, rows: int | None) -> None:
        """Change the maximum number of rows that are with the broker or running. A smaller one stops no row.

        Raises: JobNotFound, StoreError, TypeError, ValueError.
        """
        limit = check_max_in_flight(rows)

        def changed(job: JobRecord) -> JobRecord | None:
            return None if job.flow is None else replace(job, flow=replace(job.flow, max_in_flight=limit))

        if change_job(self._tracker.store, self._record.ref, changed) is not None:
            publish_due(self._tracker, self._record.ref)

    def pause(self, reason: str | None = None) -> bool:
        """Hold back the rows that have not begun. Rows that have begun go on, with their retries and later stages.

        A message that is already published goes back when a worker receives it. The rows of plain tasks, which cannot
        drop a message, still run in that case.

        Returns: False if the job has settled, was cancelled, or is paused.
        Raises: JobNotFound, StoreError, TypeError, ValueError.
        """
        return completion.pause(self._tracker.store, self._record.ref, check_message(reason))

    def resume(self) -> bool:
        """End a pause, and publish what it held back.

        Returns: False if the job is not paused. Raises: JobNotFound, StoreError.
        """
        if not completion.resume(self._tracker.store, self._record.ref):
            return False
        publish_due(self._tracker, self._record.ref)
        return True

    @property
    def paused(self) -> bool:
        """Whether rows that have not begun are held back. Raises: JobNotFound, StoreError."""
        flow = current(self._tracker.store, self._record.ref).flow
        return flow is not None and flow.paused

    @property
    def pause_reason(self) -> str | None:
        """Why the job is paused. Raises: JobNotFound, StoreError."""
        flow = current(self._tracker.store, self._record.ref).flow
        return None if flow is None else flow.pause_reason

    @property
    def generation(self) -> int:
        """The number of the current generation: 1, and one more after each rerun. Raises: JobNotFound, StoreError."""
        return current(self._tracker.store, self._record.ref).generation.number

    def rerun(self, rows: str | Iterable[int]) -> RerunReport:
        """Rerun rows that have ended without success, as a new generation of the job.

        They keep their payloads, and their attempt numbers continue. A chain starts again at the stage that failed,
        with the value of the previous stage, or at its first stage if that value was too large to be kept. A rerun ends
        the cancellation of a job that has settled; rows that are not chosen stay CANCELLED. Each generation has
        callbacks of its own.

        An earlier rerun that is incomplete is completed first. If the process is killed, or the store fails, after the
        generation was recorded, a sweep completes the rerun. If the job is cancelled before, the remaining rows are not
        reset.

        Args:
            rows: ``"failed"`` for all rows that have ended without FINISHED, also those of a cancelled job that never
                began; or the requested rows, for example ``"3,17-20"``.

        Returns: the rows that run again, and those that were skipped because they have finished, are running or are
            waiting to begin; with ``"failed"``, the finished rows are not among these. If no row can be rerun, no
            generation begins. A row that ends successfully before it is reset does not run again.

        Raises: ValueError – the job has no stored messages, or no such row; TypeError; JobNotFound; StoreContended –
            the job is cancelled, and its tasks have not stopped within 10 s; StoreError.
        """
        return rerun(self._tracker, self._record, rows)

    def members(self, rows: str | Iterable[int] | None = None) -> Iterator[Member]:
        """Return the members as they were submitted, in row order. They are read one by one, in bounded memory.

        Args:
            rows: the wanted rows, for example ``"3,17-20"``; None for all.

        Raises: ValueError – the job has no stored members, or no such row; TypeError; and while they are read,
            StoreError; ``kombu.exceptions.ContentDisallowed`` – ``accept_content`` does not allow to read one.
        """
        tracker = self._tracker
        return read_members(tracker.app, tracker.blocks, tracker.store, self._record, rows)

    async def asummary(self, tag: str | None = None, indexes: bool = True) -> Summary:
        """Return what ``summary`` returns, without blocking the event loop."""
        return await in_thread(self.summary, tag, indexes)

    async def aget_state(self, tag: str | None = None, task_index: int | None = None) -> State:
        """Return what ``get_state`` returns, without blocking the event loop."""
        return await in_thread(self.get_state, tag, task_index)

    async def alist_states(self, tag: str | None = None, task_index: int | None = None) -> list[State]:
        """Return what ``list_states`` returns, without blocking the event loop."""
        return await in_thread(self.list_states, tag, task_index)

    async def acancel(self, reason: str | None = None) -> bool:
        """Cancel the job as ``cancel`` does, without blocking the event loop."""
        return await in_thread(self.cancel, reason)

    def asubscribe(
        self,
        tag: str | None = None,
        task_index: int | None = None,
        until_settled: bool = False,
        since: str | None = None,
    ) -> AsyncSubscription:
        """Subscribe to cells in asynchronous code: ``async for event in job.asubscribe(): …``; see ``subscribe``.

        All asynchronous subscriptions to a job in this process share one watch of the store.

        Raises: TypeError, ValueError; when it is read, JobNotFound, StoreError, SubscriptionLost.
        """
        return self.manager.asubscribe(tag, task_index, until_settled=until_settled, since=since)

    async def await_settled(self, timeout: float | None = None) -> Summary:
        """Wait as ``wait`` does, without blocking the event loop or a thread."""
        seconds = check_timeout(timeout)
        if not await wait_settled(self._tracker.store, self._record, seconds):
            raise WaitTimeout(self.id, seconds or 0.0, await self.asummary())
        return await self.asummary()

    async def aget(self, timeout: float | None = None) -> list[Any]:
        """Wait and return the results of all rows as ``get`` does, without blocking the event loop."""
        check_keeps_results(self._record)
        await self.await_settled(timeout)
        return await in_thread(list_results, self._tracker, self._record)

    def delete(self) -> None:
        """Delete the job and all its states. Raises: JobNotFound, StoreError."""
        self.manager.delete_job()
