"""``Plan``: the cells that a job expects and the order of each row's stages."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import IndexSet
from celery_statemanager.codec import plan_from_json, plan_to_json
from celery_statemanager.plan import Plan


def test_a_sequence_defines_the_stages_of_every_row() -> None:
    plan = Plan.from_spec(5, ["scan", "read"])
    assert plan.tags == ("scan", "read")
    assert plan.expected == 10
    assert plan.columns == {"scan": range(5), "read": range(5)} or dict(plan.columns) == {
        "scan": IndexSet(range(5)),
        "read": IndexSet(range(5)),
    }
    assert plan.stages(4) == ("scan", "read")
    assert plan.stages(5) == ()
    assert plan.after("scan", 0) == ("read",)
    assert plan.after("read", 0) == plan.after("other", 0) == ()
    assert plan.expects("scan", 4)
    assert not plan.expects("scan", 5)
    assert not plan.expects("other", 0)


def test_a_mapping_defines_the_rows_of_each_tag() -> None:
    plan = Plan.from_spec(4, {"scan": [0, 1], "read": range(4), "save": {0, 3}})
    assert plan.tags == ("scan", "read", "save")
    assert plan.expected == 8
    assert [plan.stages(row) for row in range(4)] == [
        ("scan", "read", "save"),
        ("scan", "read"),
        ("read",),
        ("read", "save"),
    ]
    assert plan.after("scan", 0) == ("read", "save")
    assert plan.after("scan", 3) == ()
    assert {tag: str(rows) for tag, rows in plan.columns.items()} == {"scan": "0-1", "read": "0-3", "save": "0,3"}


@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(0, 9)), min_size=1))
def test_a_plan_contains_exactly_the_cells_of_its_mapping(columns: dict[str, set[int]]) -> None:
    covered = set().union(*columns.values()) == set(range(10))
    try:
        plan = Plan.from_spec(10, columns)
    except ValueError:
        assert not covered
        return
    assert covered
    for tag, rows in columns.items():
        assert {row for row in range(12) if plan.expects(tag, row)} == rows
    for row in range(10):
        assert plan.stages(row) == tuple(tag for tag, rows in columns.items() if row in rows)
    assert plan.expected == sum(map(len, columns.values()))
    assert set(plan.tags) == {tag for tag, rows in columns.items() if rows}
    assert sum(len(rows) for _, rows in plan.shapes) == 10
    assert plan_from_json(plan_to_json(plan)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_uniform_plan_of_any_size_has_one_shape() -> None:
    for tags in (("a", "b"), {"a": range(10_000_000), "b": range(10_000_000)}):
        plan = Plan.from_spec(10_000_000, tags)
        assert len(plan.shapes) == 1
        assert plan.expected == 20_000_000
        assert plan.stages(9_999_999) == ("a", "b")


@pytest.mark.parametrize(
    ("tags", "kind", "text"),
    [
        ("scan", TypeError, r"write tags=\('scan',\)"),
        (b"scan", TypeError, "sequence of names or a mapping"),
        (5, TypeError, "sequence of names or a mapping"),
        (True, TypeError, "sequence of names or a mapping"),
        ((), ValueError, "name at least one tag"),
        ({}, ValueError, "has no tag for task 0-2"),
        (("a", "a"), ValueError, "contains a name twice"),
        (("a", ""), ValueError, "1 to 200 characters"),
        (("a", "b\n"), ValueError, "must not contain"),
        (("a", 3), TypeError, "tag must be a string, not int 3"),
        ({"a": [0, 1]}, ValueError, "has no tag for task 2: every row"),
        ({"a": [0, 1, 3], "b": range(3)}, ValueError, "rows of tag 'a': task_index must be 0 … 2, not 3"),
        ({"a": [-1, 0, 1, 2]}, ValueError, "not -1"),
        ({"a": range(4)}, ValueError, "not 3"),
        ({"a": range(-1, 3)}, ValueError, "not -1"),
        ({"a": "012"}, TypeError, "must be indexes, not '012'"),
        ({"a": 5}, TypeError, "must be indexes, not 5"),
        ({"a": [True, 0, 2]}, TypeError, "task_index must be an int, not bool True"),
        ({"a": [0.0, 1, 2]}, TypeError, "not float 0.0"),
        ({3: range(3)}, TypeError, "tag must be a string"),
    ],
    ids=repr,
)
def test_from_spec_rejects_invalid_tags_with_a_remedy(tags: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Plan.from_spec(3, tags)


def test_a_long_list_of_uncovered_rows_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"has no tag for task 1,3,5,.* and more: every row") as raised:
        Plan.from_spec(100_000, {"a": range(0, 100_000, 2)})
    assert len(str(raised.value)) < 300


def test_the_cost_of_a_plan_is_linear_in_its_ranges() -> None:
    def calls(tags: int) -> int:
        counted: list[str] = []
        columns = {f"tag {row}": [row] for row in range(tags)}
        sys.setprofile(lambda _, kind, __: counted.append(kind))
        try:
            plan = Plan.from_spec(tags, columns)
            assert [plan.stages(row) for row in range(tags)] == [(tag,) for tag in columns]
        finally:
            sys.setprofile(None)
        return len(counted)

    assert calls(400) < 3 * calls(200)


def test_a_tag_without_rows_is_not_part_of_the_plan() -> None:
    assert Plan.from_spec(2, {"a": [0, 1], "b": []}).tags == ("a",)


def test_the_stages_before_a_tag_come_last_first() -> None:
    plan = Plan.from_spec(2, {"a": [0, 1], "b": [0], "c": [0, 1]})
    assert [plan.before(tag, 0) for tag in ("a", "b", "c", "other")] == [(), ("a",), ("b", "a"), ()]
    assert [plan.before("c", 1), plan.before("c", 7), plan.before("success", -1)] == [("a",), (), ()]
