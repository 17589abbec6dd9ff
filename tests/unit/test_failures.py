"""Failed cells grouped by cause: messages that differ only in numbers, causes before consequences, bounded memory."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celery_statemanager import IndexSet, State, Status
from celery_statemanager.failures import (
    MOST_GROUPS,
    MOST_RANGES,
    Cause,
    FailureGroup,
    FailureReport,
    Failures,
    cause_of,
    group_failures,
)
from celery_statemanager.records import Cell
from celery_statemanager.transitions import blocked

FAILED = int(Status.FAILED)


def failed(tag: str, row: int, message: str | None = "bad", status: int = FAILED) -> State:
    return State("job", row, tag, status, message, version=1)


def not_run(cause: State, tag: str) -> State:
    cell = blocked(Cell(), Cell(cause.status, cause.message), cause.tag, "e", 0)
    return State("job", cause.task_index, tag, cell.status, cell.message, version=1)


def brief(report: FailureReport) -> list[tuple[str, str, str, dict[str, str]]]:
    return [
        (each.cause.tag, each.text, str(each.rows.first), {tag: str(rows.first) for tag, rows in each.not_run.items()})
        for each in report.groups
    ]


def test_a_failed_row_is_grouped_with_its_later_stages() -> None:
    causes = [failed("scan", row, f"ValueError: no such page: {row}") for row in range(3, 61)]
    states = [not_run(each, tag) for tag in ("read", "save") for each in causes] + causes
    (group,) = group_failures(states).groups
    assert (group.cause, group.rows.count) == (Cause("scan", FAILED, "ValueError: no such page: #"), 58)
    assert (str(group.rows.first), group.rows.complete, group.not_run_count) == ("3-60", True, 116)
    assert {tag: str(rows.first) for tag, rows in group.not_run.items()} == {"read": "3-60", "save": "3-60"}
    assert (group.message, group.text) == ("ValueError: no such page: 3", "ValueError: no such page: #")


def test_a_message_is_shown_whole_if_all_are_equal() -> None:
    states = [failed("scan", row, "code 42 from host 7") for row in (1, 2)]
    assert brief(group_failures(states)) == [("scan", "code 42 from host 7", "1-2", {})]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("page 4 of 10", "page 17 of 9"),
        ("took 1.5 s", "took 12 s"),
        ("took 1,024.5 ms", "took 3 ms"),
        ("<Row object at 0x7f3a9c>", "<Row object at 0xdeadbeef01>"),
        ("no task 3f2a9c41-08de-4bad-beef-0123456789ab", "no task 9C1f0000-dead-beef-cafe-abcdefabcdef"),
        ("shard12.csv is missing", "shard9.csv is missing"),
        ("digest 9f86d081", "digest 4"),
    ],
)
def test_messages_that_differ_in_numbers_have_one_cause(one: str, other: str) -> None:
    report = group_failures([failed("scan", 1, one), failed("scan", 2, other)])
    assert [group.rows.count for group in report.groups] == [2]


def test_tag_status_and_text_distinguish_causes() -> None:
    states = [failed("scan", 1), failed("read", 2), failed("scan", 3, status=-42), failed("scan", 4, "worse")]
    states += [failed("scan", 5, None, -8), failed("scan", 6, None, -9)]
    assert len(group_failures(states).groups) == 6


@given(tag=st.text(min_size=1), message=st.none() | st.text(), status=st.integers(-(2**31), -1))
def test_a_cell_that_was_not_run_has_the_cause_of_the_failed_stage(tag: str, message: str | None, status: int) -> None:
    cause = failed(tag, 7, message, status)
    assume(not cause_of(cause)[2] and message != str(status))
    assert cause_of(not_run(cause, "later")) == (*cause_of(cause)[:2], True)


@pytest.mark.parametrize(
    "message", ["not run: stage 'a\nb' failed: x", "not run: stage '\\x' failed: x", "not run: stage a failed: x"]
)
def test_a_message_that_only_resembles_a_blocked_one_is_a_separate_cause(message: str) -> None:
    cause, text, was_not_run = cause_of(failed("scan", 1, message))
    assert (cause.tag, text, was_not_run) == ("scan", message, False)


def test_the_largest_cause_comes_first_and_an_unrecorded_one_last() -> None:
    few, many = failed("scan", 0, "few"), [failed("save", row, "many") for row in (5, 6, 9)]
    unseen = [not_run(failed("early", row, "unseen"), "scan") for row in range(20, 40)]
    two = [failed("scan", row, "two") for row in (3, 4)]
    report = group_failures([*unseen, few, not_run(few, "save"), *many, *two])
    assert brief(report) == [
        ("save", "many", "5-6,9", {}),
        ("scan", "two", "3-4", {}),
        ("scan", "few", "0", {"save": "0"}),
        ("early", "unseen", "", {"scan": "20-39"}),
    ]
    assert (report.other_failed, report.other_not_run) == (0, 0)


def test_a_cell_belongs_to_the_cause_of_its_newest_state() -> None:
    failures, cause = Failures(), failed("scan", 1, "first")
    assert (failures.record(cause), failures.record(not_run(cause, "save"))) == (True, False)
    assert failures.record(failed("scan", 1, "second")) is True
    assert failures.record(failed("save", 1, "of its own")) is True
    assert brief(failures.report()) == [("scan", "second", "1", {}), ("save", "of its own", "1", {})]
    assert failures.record(State("job", 1, "scan", 1)) is None
    failures.discard("save", 1)
    failures.discard("save", 1)
    assert not failures
    assert failures.report() == FailureReport([])


def test_repeating_a_state_changes_nothing() -> None:
    failures, cause = Failures(), failed("scan", 1)
    for _ in range(3):
        failures.record(cause)
        failures.record(not_run(cause, "save"))
    (group,) = failures.report().groups
    assert (len(group.rows), group.not_run_count, bool(failures)) == (1, 1, True)


def words(number: int) -> str:
    """Spell a number without digits."""
    return "".join(chr(ord("g") + int(digit)) for digit in str(number))


def test_causes_beyond_the_limit_are_counted_and_a_frequent_one_is_kept() -> None:
    failures = Failures()
    for row in range(200):
        cause = failed("scan", row, f"cannot read {words(row)}")
        failures.record(cause)
        failures.record(not_run(cause, "save"))
    for row in range(200, 230):
        failures.record(failed("scan", row, "connection refused"))
    report = failures.report()
    assert len(report.groups) == MOST_GROUPS
    assert (report.groups[0].text, report.groups[0].rows.count) == ("connection refused", 30)
    assert (report.other_failed, report.other_not_run) == (200 - (MOST_GROUPS - 1),) * 2


def test_a_cause_with_several_rows_is_always_kept() -> None:
    failures = Failures(most_groups=2)
    for row in range(4):
        failures.record(failed("scan", row, "one" if row % 2 else "two"))
    failures.record(failed("scan", 9, "three"))
    report = failures.report()
    assert [(group.text, group.rows.count) for group in report.groups] == [("two", 2), ("one", 2)]
    assert report.other_failed == 1
    failures.discard("scan", 9)
    assert failures.report().other_failed == 0


def test_a_report_names_a_limited_number_of_ranges_and_counts_all() -> None:
    (group,) = group_failures(failed("scan", row) for row in range(0, 10_000, 2)).groups
    assert (len(group.rows), group.rows.complete) == (5_000, False)
    assert group.rows.first == IndexSet(range(0, 2 * MOST_RANGES, 2))
    (whole,) = group_failures(failed("scan", row) for row in range(10_000)).groups
    assert (str(whole.rows.first), whole.rows.complete) == ("0-9999", True)


def test_a_report_agrees_with_a_recount_after_any_changes() -> None:
    rng = random.Random(12)
    failures = Failures()
    cells: dict[tuple[str, int], State] = {}
    for step in range(3_000):
        row, tag = rng.randrange(3_000), rng.choice(("scan", "read", "save"))
        cause = failed("scan", row, f"{rng.choice('ab')} {row}")
        state = rng.choice((State("job", row, tag, 1), failed(tag, row, rng.choice("xyz")), not_run(cause, tag)))
        cells[tag, row] = state
        failures.record(state)
        if step % 500 == 499:
            check(failures.report(), cells)


def check(report: FailureReport, cells: dict[tuple[str, int], State]) -> None:
    expected = Counter((*cause_of(state)[::2], state.tag, state.task_index) for state in cells.values() if state.failed)
    assert Counter(listed(report.groups)) == expected


def listed(groups: list[FailureGroup]) -> Iterator[tuple[Cause, bool, str, int]]:
    for group in groups:
        for tag, blocked_too, rows in [(group.cause.tag, False, group.rows)] + [
            (tag, True, rows) for tag, rows in group.not_run.items()
        ]:
            assert rows.complete
            yield from ((group.cause, blocked_too, tag, row) for row in rows.first)


def test_a_million_failed_rows_take_little_memory() -> None:
    failures, size = Failures(), 1_000_000
    tracemalloc.start()
    try:
        for row in range(0, size, 25):
            failures.record(failed("scan", row, f"cannot read {words(row)}"))
            failures.record(failed("scan", row + 1, f"{'abcdef'[row % 6] * 9} refused page {row}"))
        report = failures.report()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert report.other_failed + sum(group.rows.count for group in report.groups) == 2 * size // 25
    assert taken < 3_000_000


def test_the_message_of_a_cause_is_truncated() -> None:
    one = cause_of(failed("scan", 1, "1" * 65_000 + "g"))[0]
    assert len(one.message) < 300
