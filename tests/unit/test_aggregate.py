"""The lowest status of a grid with missing cells; latch decisions from tallies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_statemanager import IndexSet, State, Status
from celery_statemanager.aggregate import (
    decisions,
    expected_rows,
    expected_tags,
    expects,
    lowest,
    mask_cancelled,
    missing_state,
    settled,
    summarize,
)
from celery_statemanager.models import Scope, status_name
from celery_statemanager.records import FRACTION_UNIT, Cancellation, Cell, Column, Latch, Tally, new_job

PLANNED = new_job("job", 4, {"a": [0, 1, 2, 3], "b": [1, 3]})
FREE = new_job("job", 4)
FINISHED, FAILED, CANCELLED = int(Status.FINISHED), int(Status.FAILED), int(Status.CANCELLED)


def cancelled(job: Any) -> Any:
    return replace(job, cancelled=Cancellation("why", 1))


def state(status: int, row: int = 0, tag: str = "a", **fields: Any) -> State:
    return State("job", row, tag, status, **fields)


def test_the_lowest_status_wins_then_the_lowest_row_then_the_first_tag() -> None:
    assert lowest([]) is None
    assert lowest([state(5, 0), state(-1, 9)]) == state(-1, 9)
    assert lowest([state(5, 2, "a"), state(5, 1, "z"), state(5, 1, "b")]) == state(5, 1, "b")
    assert lowest([state(5, 10), state(5, 9)]) == state(5, 9)
    assert lowest([state(5, 0, "a"), state(5, 0, "B"), state(5, 0, "\U0001f600"), state(5, 0, "\uffff")]) == state(
        5, 0, "B"
    )
    assert lowest([state(5, 0, "\U0001f600"), state(5, 0, "\uffff")]) == state(5, 0, "\uffff")


def test_a_missing_cell_is_not_started_or_cancelled_with_its_job() -> None:
    assert missing_state(FREE, "a", 3) == state(0, 3)
    assert missing_state(cancelled(FREE), "a", 3) == state(CANCELLED, 3, message="why")


@pytest.mark.parametrize(
    ("cell", "masked"),
    [(Cell(0), True), (Cell(0, open=True), False), (Cell(1), False), (Cell(FAILED), False), (Cell(FINISHED), False)],
)
def test_only_an_unstarted_cell_of_a_cancelled_job_reads_as_cancelled(cell: Cell, masked: bool) -> None:
    seen = state(cell.status, payload={"n": 1}, version=3, event_id="e")
    assert mask_cancelled(FREE, cell, seen) is seen
    expected = replace(seen, status=CANCELLED, message="why") if masked else seen
    assert mask_cancelled(cancelled(FREE), cell, seen) == expected


def test_expected_cells_are_the_planned_ones_or_every_row_of_every_written_tag() -> None:
    assert expected_tags(PLANNED, ["z"]) == ["a", "b"]
    assert expected_tags(FREE, ["z", "B"]) == ["B", "z"]
    assert expected_rows(PLANNED, "b") == IndexSet([1, 3])
    assert expected_rows(PLANNED, "z") == expected_rows(FREE, "a") == IndexSet(range(4))
    assert [expects(PLANNED, "b", row) for row in range(4)] == [False, True, False, True]
    assert not expects(PLANNED, "z", 0)
    assert expects(FREE, "z", 0)


DECIDED = Latch(None, 1)


@pytest.mark.parametrize(
    ("job", "tally", "expected"),
    [
        (PLANNED, Tally(), ()),
        (PLANNED, Tally(finished=6, succeeded=5, ended=5, pending=1), ()),
        (PLANNED, Tally(finished=6, succeeded=6, ended=6), ("success", "settled")),
        (PLANNED, Tally(succeeded=5, ended=6, failed=1, failures=1), ("failure", "settled")),
        (PLANNED, Tally(ended=1, failed=1, failures=1), ("failure",)),
        (PLANNED, Tally(ended=1, failed=1), ()),
        (PLANNED, Tally(ended=6, failed=6), ("settled",)),
        (PLANNED.with_latches(failure=DECIDED), Tally(ended=2, failed=2, failures=2), ()),
        (PLANNED.with_latches(failure=DECIDED), Tally(succeeded=6, ended=6), ("success", "settled")),
        (PLANNED.with_latches(success=DECIDED, settled=DECIDED), Tally(succeeded=6, ended=6), ()),
        (cancelled(PLANNED), Tally(), ("settled",)),
        (cancelled(PLANNED), Tally(pending=1), ()),
        (cancelled(PLANNED), Tally(ended=6, pending=1), ()),
        (cancelled(PLANNED), Tally(ended=1, failures=1), ("failure", "settled")),
        (cancelled(PLANNED), Tally(ended=6, succeeded=6), ("settled",)),
        (cancelled(PLANNED).with_latches(settled=DECIDED), Tally(), ()),
    ],
)
def test_latches_are_decided_when_their_condition_is_met(job: Any, tally: Tally, expected: tuple[str, ...]) -> None:
    assert decisions(job, 6, tally) == expected


def column(tally: Tally, expected: int = 4, tag: str = "a", **sets: IndexSet) -> Column:
    return Column(tag, expected, tally, state(tally.failed * -1, 0, tag), **sets)


@pytest.mark.parametrize(
    ("job", "columns", "expected"),
    [
        (PLANNED, [column(Tally(ended=4))], False),
        (PLANNED.with_latches(settled=DECIDED), [column(Tally())], True),
        (FREE, [], False),
        (FREE, [column(Tally(ended=4))], True),
        (FREE, [column(Tally(ended=4)), column(Tally(ended=3))], False),
        (cancelled(FREE), [], True),
        (cancelled(FREE), [column(Tally(ended=1))], True),
        (cancelled(FREE), [column(Tally(pending=1))], False),
        (cancelled(PLANNED), [column(Tally())], False),
    ],
)
def test_a_planned_job_settles_by_its_latch_and_an_unplanned_one_by_its_columns(
    job: Any, columns: list[Column], expected: bool
) -> None:
    assert settled(job, columns) is expected


def test_a_summary_adds_up_its_columns() -> None:
    first = column(
        Tally(running=1, finished=1, failed=1, stalled=1, progress=FRACTION_UNIT // 2),
        failed=IndexSet([1]),
        running=IndexSet([2]),
        missing=IndexSet([3]),
        not_run=IndexSet(),
        stalled=IndexSet([2]),
    )
    second = column(
        Tally(finished=2, not_run=1),
        3,
        "b",
        failed=IndexSet(),
        running=IndexSet(),
        missing=IndexSet(),
        not_run=IndexSet([1]),
        stalled=IndexSet(),
    )
    found = summarize(PLANNED, [first, second], indexes=True)
    assert (found.num_tasks, found.expected, found.not_started) == (4, 7, 1)
    assert (found.running, found.finished, found.failed, found.not_run) == (1, 3, 1, 1)
    assert found.not_run_indexes == IndexSet([1])
    assert (found.stalled, found.stalled_indexes) == (1, IndexSet([2]))
    assert found.fraction == 3.5 / 7
    assert found.lowest == state(-1)
    assert [str(each) for each in (found.failed_indexes, found.running_indexes, found.missing_indexes)] == [
        "1",
        "2",
        "3",
    ]
    gone = summarize(cancelled(PLANNED), [first, second], indexes=True)
    assert (gone.not_started, gone.failed, gone.failed_indexes, gone.missing_indexes) == (0, 2, {1, 3}, set())
    assert (gone.not_run, gone.not_run_indexes) == (1, {1})
    bare = summarize(PLANNED, [first, second], indexes=False)
    assert (bare.failed_indexes, bare.not_run_indexes, bare.not_run) == (None, None, 1)


def test_a_summary_without_expected_cells_is_empty() -> None:
    found = summarize(FREE, [], indexes=True)
    assert (found.expected, found.fraction, found.lowest.status) == (0, 0.0, 0)
    assert found.missing_indexes == set()


@pytest.mark.parametrize(
    ("status", "payload", "fraction"),
    [
        (FINISHED, {"progress": {"done": 1, "total": 2}}, 1.0),
        (50, {"progress": {"done": 1, "total": 4}}, 0.25),
        (50, {"progress": {"done": 5, "total": 4}}, 0.5),
        (50, None, 0.5),
        (2, {}, 0.02),
        (100, None, 1.0),
        (101, None, None),
        (0, None, 0.0),
        (1, None, 0.0),
        (1, {"progress": {"done": 1, "total": 2}}, 0.5),
        (-1, None, None),
        (-1, {"progress": {"done": 1, "total": 2}}, 0.5),
        (5000, {"progress": "half"}, None),
    ],
)
def test_the_fraction_of_a_state_follows_its_status_and_progress(
    status: int, payload: Any, fraction: float | None
) -> None:
    assert state(status, payload=payload).fraction == fraction


@pytest.mark.parametrize(
    ("status", "terminal", "finished", "failed"),
    [(0, False, False, False), (50, False, False, False), (FINISHED, True, True, False), (-99, True, False, True)],
)
def test_a_state_classifies_its_status(status: int, terminal: bool, finished: bool, failed: bool) -> None:
    found = state(status)
    assert (found.terminal, found.finished, found.failed) == (terminal, finished, failed)


def test_predefined_statuses_have_names() -> None:
    assert [status_name(status) for status in (0, FINISHED, -7, 40, -42)] == [
        "NOT_STARTED",
        "FINISHED",
        "CANCELLED",
        "40",
        "-42",
    ]


def test_a_scope_contains_its_cells() -> None:
    assert Scope().holds("a", 1)
    assert Scope("a").holds("a", 1)
    assert not Scope("a").holds("b", 1)
    assert Scope(task_index=0).holds("b", 0)
    assert not Scope("a", 0).holds("a", 1)
