"""``IndexSet`` behaves like a set of integers at any size."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import IndexSet

small = st.integers(0, 60)
sets = st.sets(small)


def has_disjoint_ranges(index_set: IndexSet) -> bool:
    return all(low <= high for low, high in index_set.ranges) and all(
        before[1] + 1 < after[0] for before, after in zip(index_set.ranges, index_set.ranges[1:])
    )


@given(sets)
def test_an_index_set_equals_the_set_of_its_items(items: set[int]) -> None:
    index_set = IndexSet(items)
    assert list(index_set) == sorted(items)
    assert len(index_set) == len(items)
    assert bool(index_set) == bool(items)
    assert index_set == items
    assert items == index_set
    assert all((index in index_set) == (index in items) for index in range(-2, 64))
    assert has_disjoint_ranges(index_set)


@given(sets)
def test_after_returns_the_index_at_a_position(items: set[int]) -> None:
    index_set = IndexSet(items)
    assert [index_set.after(number) for number in range(len(items))] == sorted(items)
    with pytest.raises(IndexError):
        index_set.after(len(items))


@given(sets, sets, sets)
def test_set_operations_match_those_of_set(one: set[int], two: set[int], three: set[int]) -> None:
    first, second = IndexSet(one), IndexSet(two)
    for result, expected in (
        (first.union(second), one | two),
        (first.union(second, IndexSet(three)), one | two | three),
        (first.union(), one),
        (first.without(second), one - two),
        (first.within(second), one & two),
        (first | second, one | two),
        (first - second, one - two),
        (first & second, one & two),
        (first ^ second, one ^ two),
    ):
        assert result == expected
        assert result == IndexSet(expected)
        assert hash(result) == hash(IndexSet(expected))
        assert has_disjoint_ranges(result)
    assert (first <= second) == (one <= two)
    assert first.isdisjoint(second) == one.isdisjoint(two)


@given(sets)
def test_str_repr_and_pickle_round_trip(items: set[int]) -> None:
    index_set = IndexSet(items)
    assert IndexSet.parse(str(index_set)) == index_set
    assert pickle.loads(pickle.dumps(index_set)) == index_set
    assert eval(repr(index_set), {"IndexSet": IndexSet.parse}) == items


@given(st.lists(st.tuples(small, small)))
def test_the_union_of_ranges_contains_their_indexes(pairs: list[tuple[int, int]]) -> None:
    ascending = [(min(pair), max(pair)) for pair in pairs]
    expected = {index for low, high in ascending for index in range(low, high + 1)}
    assert IndexSet().union(*(IndexSet.from_ranges([pair]) for pair in ascending)) == expected


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ((), ""),
        ((5,), "5"),
        ((3, 17, 18, 19, 20), "3,17-20"),
        ((0, 1), "0-1"),
        ((0, 2, 4), "0,2,4"),
        ([2, 2, 1], "1-2"),
    ],
)
def test_str_compresses_ranges(items: tuple[int, ...], text: str) -> None:
    assert str(IndexSet(items)) == text
    assert IndexSet.parse(text) == set(items)


@pytest.mark.parametrize(
    "text", ["x", "1-", "-1", "3-1", "2,1", "1,1", "1-3,3", "1-3,2-5", "1--3", "1.5", "a-b", "1 2"]
)
def test_parse_rejects_malformed_text(text: str) -> None:
    with pytest.raises(ValueError):
        IndexSet.parse(text)


def test_parse_merges_adjacent_ranges() -> None:
    assert IndexSet.parse("1-2,3,4-5") == IndexSet(range(1, 6))


def test_ten_million_consecutive_indexes_are_one_range() -> None:
    rows = IndexSet(range(10_000_000))
    assert rows.ranges == ((0, 9_999_999),)
    assert len(rows) == 10_000_000
    holes = rows.without(IndexSet([0, 5_000_000]))
    assert str(holes) == "1-4999999,5000001-9999999"
    assert holes.within(IndexSet([7])) == {7}
    assert rows.first == 0


def test_stepped_ranges_and_generators_are_accepted() -> None:
    assert IndexSet(range(0, 9, 4)) == {0, 4, 8}
    assert IndexSet(range(5, 2, -1)) == {3, 4, 5}
    assert IndexSet(range(3, 3)) == set()
    assert IndexSet(index for index in (9, 1)) == {1, 9}
    assert IndexSet(IndexSet([1, 2])) == {1, 2}


def test_the_head_of_a_set_has_its_lowest_indexes() -> None:
    rows = IndexSet.parse("1,3-5,9")
    assert [str(rows.head(number)) for number in (0, 1, 2, 3, 4, 5, 6)] == [
        "",
        "1",
        "1,3",
        "1,3-4",
        "1,3-5",
        "1,3-5,9",
        "1,3-5,9",
    ]


def test_first_raises_index_error_for_an_empty_set() -> None:
    assert IndexSet([7, 3]).first == 3
    with pytest.raises(IndexError):
        _ = IndexSet().first


def test_values_of_other_types_are_not_members() -> None:
    assert "3" not in IndexSet([3])
    assert 3.0 not in IndexSet([3])
    assert IndexSet([3]) != "3"
