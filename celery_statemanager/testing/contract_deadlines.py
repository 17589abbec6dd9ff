"""The deadline of a job (rule R23)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager import completion
from celery_statemanager.errors import JobCancelled
from celery_statemanager.generations import begin_generation, reset_rows
from celery_statemanager.records import CALLBACK_ROW, JobRecord, Policy, Verdict, to_datetime
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, smoke

HOUR = 3_600_000_000


def timed(store: Store, left: int, num_tasks: int = 3) -> Grid:
    """Create a job whose deadline is some microseconds ahead."""
    return Grid.create(store, num_tasks, ("a",), policy=Policy(deadline=store.now() + left))


class DeadlineContract:
    """Tests of deadlines that need no outbox."""

    def test_a_job_begins_before_its_deadline(self, store: Store) -> None:
        grid = timed(store, HOUR)
        assert completion.begin(store, grid.ref, grid.request("a", 0)).verdict is Verdict.BEGUN
        assert completion.expire(store, grid.ref) == ()
        assert grid.job.cancelled is None

    @smoke
    def test_a_begin_after_the_deadline_is_refused_and_changes_nothing(self, store: Store) -> None:
        grid = timed(store, -1)
        reply = grid.begin("a", 0)
        assert (reply.verdict, reply.decided) == (Verdict.EXPIRED, ())
        assert (grid.cell("a", 0).version, grid.job.cancelled) == (0, None)

    @smoke
    def test_a_begin_after_the_deadline_cancels_the_job(self, store: Store) -> None:
        grid = timed(store, -1)
        reply = completion.begin(store, grid.ref, grid.request("a", 0))
        assert (reply.verdict, reply.decided) == (Verdict.CANCELLED, ("settled",))
        job = grid.job
        moment = to_datetime(job.policy.deadline or 0)
        assert job.cancelled
        assert job.cancelled.reason == f"its deadline of {moment:%Y-%m-%d %H:%M:%S} UTC passed"
        assert grid.state("a", 2).message == job.cancelled.reason
        assert grid.begin("a", 1).verdict is Verdict.CLOSED

    def test_an_attempt_that_runs_at_the_deadline_ends_as_in_any_cancelled_job(self, store: Store) -> None:
        grid = timed(store, HOUR)
        grid.begin("a", 0)
        grid.update(_expired)
        assert completion.expire(store, grid.ref) == ()
        assert completion.begin(store, grid.ref, grid.request("a", 1)).verdict is Verdict.CANCELLED
        with pytest.raises(JobCancelled, match="its deadline of"):
            grid.write("a", 0, 40, attempt=1)
        assert grid.end("a", 0, CANCELLED).decided == ("settled",)

    def test_a_settled_job_does_not_expire(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",), success="{}", policy=Policy(deadline=store.now() + HOUR))
        grid.run("a", 0)
        grid.update(_expired)
        assert completion.expire(store, grid.ref) == ()
        assert (grid.job.cancelled, grid.decided) == (None, {"success", "settled"})
        assert completion.begin(store, grid.ref, grid.request("a", 0)).verdict is Verdict.FINISHED
        assert grid.begin("success", CALLBACK_ROW).verdict is Verdict.BEGUN

    def test_a_cancelled_job_keeps_its_reason(self, store: Store) -> None:
        grid = timed(store, -1)
        grid.cancel("user asked")
        assert completion.expire(store, grid.ref) == ()
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == "user asked"

    def test_a_late_begin_and_the_end_of_its_task_are_accepted(self, store: Store) -> None:
        grid = timed(store, -1, 1)
        reply = grid.write("a", 0, FINISHED, begin=grid.request("a", 0), ends_attempt=True)
        assert set(reply.decided) == {"success", "settled"}


class DeadlineRerunContract:
    """Tests of deadlines in later generations."""

    @pytest.mark.parametrize(
        ("policy", "left"),
        [
            (Policy(deadline=1, lifetime=HOUR), HOUR),
            (Policy(deadline=1), None),
            (Policy(1, deadline=2**51), 2**51),
            (Policy(), None),
        ],
    )
    def test_a_rerun_begins_a_relative_deadline_anew_and_drops_one_that_has_passed(
        self, store: Outbox, policy: Policy, left: int | None
    ) -> None:
        grid = Grid.submitted(store, 2, ("a",), policy=policy)
        before = store.now()
        grid.end("a", 0, FAILED, begin=grid.request("a", 0), attempt=None)
        completion.expire(store, grid.ref)
        if not grid.job.settled:
            grid.cancel()

        def complete(job: JobRecord) -> None:
            raise AssertionError(f"{job} is being rerun")

        begin_generation(store, grid.ref, None, complete)
        reset_rows(store, grid.job, lambda _, tag: tag, lambda: None)
        renewed = grid.job.policy
        assert (renewed.max_failed, renewed.lifetime) == (policy.max_failed, policy.lifetime)
        if policy.lifetime is not None:
            assert before + HOUR <= (renewed.deadline or 0) <= store.now() + HOUR
        else:
            assert renewed.deadline == left
        again = completion.begin(store, grid.ref, grid.request("a", 0, delivery=grid.cell("a", 0).delivery))
        assert again.verdict is Verdict.BEGUN


def _expired(job: JobRecord) -> JobRecord:
    return replace(job, policy=replace(job.policy, deadline=1))
