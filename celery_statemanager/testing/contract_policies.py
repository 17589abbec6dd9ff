"""The number of failed rows that a job tolerates (rule R22)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from celery_statemanager.generations import begin_generation, reset_rows
from celery_statemanager.indexset import IndexSet
from celery_statemanager.overview import Phase, overview
from celery_statemanager.records import JobRecord, Policy, Verdict, Write
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, smoke

ROWS = 4
STAGES = ("a", "b")


@dataclass(frozen=True, slots=True)
class PolicyCase:
    """The outcome of a job of four rows. docs/guide.md shows all cases as a table.

    Attributes:
        what: the events in words.
        events: one letter each. The next row finishes (F) or fails in its first (X) or last stage (Y), the job is
            cancelled (C), all rows without success are rerun (A), or the first one (R).
        decided: the latches that are decided in the last generation.
        failed_rows: the number of rows that have failed in the last generation.
    """

    max_failed: int | None
    what: str
    events: str
    decided: frozenset[str]
    phase: Phase
    failed_rows: int = 0

    def __str__(self) -> str:
        return f"{self.max_failed} {self.events}"

    @property
    def reruns(self) -> bool:
        """Whether rows are rerun."""
        return bool({*"AR"} & {*self.events})


def _case(max_failed: int | None, what: str, events: str, decided: str, phase: Phase, failed: int = 0) -> PolicyCase:
    return PolicyCase(max_failed, what, events, frozenset(decided.split()), phase, failed)


POLICY_CASES = (
    _case(None, "all rows finish", "FFFF", "success settled", Phase.FINISHED),
    _case(None, "1 row fails, 3 finish", "FXFF", "failure settled", Phase.FAILED, 1),
    _case(None, "all rows fail", "XYXY", "failure settled", Phase.FAILED, 4),
    _case(None, "1 row fails, then the job is cancelled", "FYC", "failure settled", Phase.CANCELLED, 1),
    _case(None, "1 row fails, 3 finish; it is rerun and finishes", "XFFFAF", "success settled", Phase.FINISHED),
    _case(None, "1 row fails, 3 finish; it is rerun and fails", "XFFFAX", "failure settled", Phase.FAILED, 1),
    _case(0, "all rows finish", "FFFF", "success settled", Phase.FINISHED),
    _case(0, "1 row finishes, 1 fails", "FX", "failure settled", Phase.CANCELLED, 1),
    _case(0, "3 rows finish, the last fails", "FFFY", "failure settled", Phase.CANCELLED, 1),
    _case(0, "1 row finishes, then the job is cancelled", "FC", "settled", Phase.CANCELLED),
    _case(0, "1 row fails; all are rerun and finish", "XAFFFF", "success settled", Phase.FINISHED),
    _case(0, "1 row fails; all are rerun, 1 finishes, 1 fails", "YAFY", "failure settled", Phase.CANCELLED, 1),
    _case(2, "all rows finish", "FFFF", "success settled", Phase.FINISHED),
    _case(2, "2 rows fail, 2 finish", "FXFY", "success settled", Phase.FINISHED, 2),
    _case(2, "3 rows fail", "XYX", "failure settled", Phase.CANCELLED, 3),
    _case(2, "1 row finishes, 3 fail", "XFYX", "failure settled", Phase.CANCELLED, 3),
    _case(2, "2 rows fail, then the job is cancelled", "XYC", "settled", Phase.CANCELLED, 2),
    _case(2, "3 rows fail; all are rerun and finish", "XYXAFFFF", "success settled", Phase.FINISHED),
    _case(2, "3 rows fail; all are rerun, 2 fail, 2 finish", "XXXAXYFF", "success settled", Phase.FINISHED, 2),
    _case(2, "3 rows fail; all are rerun, 3 fail", "XXXAXYX", "failure settled", Phase.CANCELLED, 3),
    _case(2, "2 rows fail, 2 finish; 1 row is rerun and fails", "XYFFRY", "success settled", Phase.FINISHED, 1),
    _case(2, "3 rows fail; 1 is rerun and finishes, the last never runs", "XYXRF", "settled", Phase.FAILED),
)


class PolicyGrid:
    """A job whose rows end one after the other."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._left = list(range(grid.job.num_tasks))

    def apply(self, events: str) -> None:
        """Apply events, see ``PolicyCase``."""
        for event in events:
            if event == "C":
                self.grid.cancel()
            elif event in "AR":
                self._rerun(only_first=event == "R")
            else:
                self._run(self._left.pop(0), event)

    def _run(self, row: int, event: str) -> None:
        stages = self.grid.job.plan.stages(row) if self.grid.job.plan else ()
        ends = {"F": [FINISHED] * len(stages), "X": [FAILED], "Y": [*[FINISHED] * (len(stages) - 1), FAILED]}[event]
        for tag, status in zip(stages, ends):
            cell = self.grid.cell(tag, row)
            if cell.status != FINISHED:
                assert self.grid.begin(tag, row, delivery=cell.delivery).verdict is Verdict.BEGUN
                self.grid.end(tag, row, status)

    def _rerun(self, *, only_first: bool) -> None:
        self._left = list(rerun(self.grid, [0] if only_first else None))


def rerun(grid: Grid, rows: Sequence[int] | None = None) -> list[int]:
    """Rerun rows from the stage that failed, or all that have not succeeded. Return them."""
    store = grid.store
    assert isinstance(store, Outbox)

    def complete(job: JobRecord) -> None:
        raise AssertionError(f"{job} is being rerun")

    report = begin_generation(store, grid.ref, None if rows is None else IndexSet(rows), complete)
    reset_rows(store, grid.job, lambda _, tag: tag, lambda: None)
    return list(report.rows)


def check_case(grid: Grid, case: PolicyCase) -> None:
    """Apply the events of a case, and compare the outcome."""
    PolicyGrid(grid).apply(case.events)
    found = overview(grid.store, grid.ref)
    assert grid.decided & {"success", "failure", "settled"} == case.decided
    assert (found.phase, found.summary.failed_rows) == (case.phase, case.failed_rows)
    assert found.summary.max_failed == case.max_failed
    if "failure" in case.decided and case.max_failed is not None:
        rows = "1 row" if case.failed_rows == 1 else f"{case.failed_rows} rows"
        reason = f"{rows} failed, at most {case.max_failed} may (max_failed)"
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == reason


def policed(store: Store, max_failed: int | None, num_tasks: int = ROWS, tags: tuple[str, ...] = ("a",)) -> Grid:
    """Create a job that tolerates some failed rows."""
    return Grid.create(store, num_tasks, tags, policy=Policy(max_failed))


class PolicyContract:
    """Tests of ``Policy.max_failed`` that need no outbox."""

    @pytest.mark.parametrize("tags", [("a",), STAGES])
    @pytest.mark.parametrize("case", [case for case in POLICY_CASES if not case.reruns], ids=str)
    def test_the_outcome_of_a_job_with_failures(self, store: Store, case: PolicyCase, tags: tuple[str, ...]) -> None:
        check_case(policed(store, case.max_failed, tags=tags), case)

    @smoke
    def test_one_failed_row_too_many_cancels_the_job_in_the_same_step(self, store: Store) -> None:
        grid = policed(store, 1)
        for row in range(3):
            grid.begin("a", row)
        assert grid.end("a", 0, FAILED).decided == ()
        assert grid.job.cancelled is None
        before = store.now()
        assert grid.end("a", 1, FAILED).decided == ("failure",)
        job = grid.job
        assert job.cancelled
        assert job.cancelled.reason == "2 rows failed, at most 1 may (max_failed)"
        assert before <= job.cancelled.at <= store.now()
        assert grid.state("a", 3).message == job.cancelled.reason
        assert grid.begin("a", 3).verdict is Verdict.CANCELLED
        assert grid.end("a", 2, CANCELLED).decided == ("settled",)
        assert grid.manager().summary().failed_rows == 2

    @smoke
    def test_rows_that_run_when_the_job_is_cancelled_may_fail_too(self, store: Store) -> None:
        grid = policed(store, 0)
        for row in range(3):
            grid.begin("a", row)
        assert grid.end("a", 0, FAILED).decided == ("failure",)
        assert grid.end("a", 1, FAILED).decided == ()
        assert grid.end("a", 2).decided == ("settled",)
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == "1 row failed, at most 0 may (max_failed)"
        assert grid.manager().summary().failed_rows == 2

    def test_a_row_that_fails_again_counts_once(self, store: Store) -> None:
        grid = policed(store, 1)
        for _ in range(3):
            grid.run("a", 0, FAILED)
        assert grid.manager().summary().failed_rows == 1
        assert grid.decided == set()

    def test_a_row_that_was_presumed_dead_and_finishes_no_longer_counts(self, store: Store) -> None:
        grid = policed(store, 1, 3)
        grid.begin("a", 0, owner="w")
        store.write(grid.ref, Write.lost("a", 0, "lost", attempt=1))
        assert grid.manager().summary().failed_rows == 1
        store.write(grid.ref, Write.ending("a", 0, FINISHED, attempt=1))
        assert grid.manager().summary().failed_rows == 0
        grid.run("a", 1, FAILED)
        assert set(grid.run("a", 2).decided) == {"success", "settled"}

    def test_a_row_that_ends_as_cancelled_is_neither_failed_nor_tolerated(self, store: Store) -> None:
        grid = policed(store, 1, 3)
        grid.run("a", 0, CANCELLED)
        grid.run("a", 1, FAILED)
        assert grid.manager().summary().failed_rows == 1
        assert grid.run("a", 2).decided == ("settled",)

    def test_a_chain_counts_as_one_row_in_the_stage_that_failed(self, store: Store) -> None:
        grid = policed(store, 3, tags=("a", "b", "c"))
        grid.run("a", 0, FAILED)
        for row in (1, 2):
            grid.run("a", row)
            grid.run("b", row, FAILED)
        assert [grid.manager().summary(tag).failed_rows for tag in (None, "a", "b", "c")] == [3, 1, 2, 0]
        assert grid.decided == set()

    def test_every_write_keeps_the_policy(self, store: Store) -> None:
        grid = policed(store, 2)
        grid.run("a", 0, FAILED)
        grid.tombstone()
        grid.cancel("user asked")
        assert grid.job.policy == Policy(2)
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == "user asked"

    def test_success_is_never_decided_in_a_cancelled_job(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0)
        grid.cancel()
        assert grid.end("a", 0).decided == ("settled",)

    @smoke
    def test_rows_that_fail_at_the_same_moment_decide_failure_once(self, store: Store) -> None:
        grid = policed(store, 3, 8)
        for row in range(8):
            grid.begin("a", row)
        ready, lock = threading.Barrier(8), threading.Lock()
        decided: list[str] = []

        def fail(row: int) -> None:
            ready.wait()
            names = grid.end("a", row, FAILED).decided
            with lock:
                decided.extend(names)

        threads = [threading.Thread(target=fail, args=(row,)) for row in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(decided) == ["failure", "settled"]
        assert grid.manager().summary().failed_rows == 8
        assert grid.job.cancelled


class PolicyRerunContract:
    """Tests of ``Policy.max_failed`` in later generations."""

    @pytest.mark.parametrize("tags", [("a",), STAGES])
    @pytest.mark.parametrize("case", [case for case in POLICY_CASES if case.reruns], ids=str)
    def test_the_outcome_of_a_rerun_with_failures(self, store: Outbox, case: PolicyCase, tags: tuple[str, ...]) -> None:
        check_case(Grid.submitted(store, ROWS, tags, policy=Policy(case.max_failed)), case)

    def test_rows_that_fail_while_rows_are_reset_cancel_the_job_afterwards(self, store: Outbox) -> None:
        grid = Grid.submitted(store, 4, ("a",), policy=Policy(1))
        grid.run("a", 0, FAILED)
        grid.begin("a", 1)
        grid.begin("a", 2)
        job, columns = store.column_summaries(grid.ref)
        failures = sum(each.tally.failures for each in columns)
        assert store.update_job(job.with_generation(IndexSet([0]), failures, 0)) == ()
        assert grid.end("a", 1, FAILED).decided == ()
        assert grid.end("a", 2, FAILED).decided == ()
        assert grid.job.cancelled is None
        reset_rows(store, grid.job, lambda _, tag: tag, lambda: None)
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == "2 rows failed, at most 1 may (max_failed)"
        assert grid.decided >= {"failure"}

    def test_rows_that_failed_before_and_are_not_rerun_do_not_count(self, store: Outbox) -> None:
        grid = Grid.submitted(store, 6, ("a",), policy=Policy(2))
        for row in (0, 1):
            grid.run("a", row, FAILED)
        rerun(grid, [0])
        assert grid.manager().summary().failed_rows == 0
        PolicyGrid(grid)._run(0, "X")
        assert (grid.manager().summary().failed_rows, grid.job.cancelled) == (1, None)
        for row in (2, 3):
            grid.run("a", row, FAILED)
        assert grid.job.cancelled
        assert grid.job.cancelled.reason == "3 rows failed, at most 2 may (max_failed)"
