"""Index sets behave like sets of integers, at any size."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import IndexSet

small = st.integers(0, 60)
sets = st.sets(small)


def ranges_apart(found: IndexSet) -> bool:
    return all(low <= high for low, high in found.ranges) and all(
        before[1] + 1 < after[0] for before, after in zip(found.ranges, found.ranges[1:])
    )


@given(sets)
def test_it_holds_what_it_was_made_of(items: set[int]) -> None:
    found = IndexSet(items)
    assert list(found) == sorted(items)
    assert len(found) == len(items)
    assert bool(found) == bool(items)
    assert found == items
    assert items == found
    assert all((index in found) == (index in items) for index in range(-2, 64))
    assert ranges_apart(found)


@given(sets)
def test_an_index_is_found_by_how_many_come_before_it(items: set[int]) -> None:
    found = IndexSet(items)
    assert [found.after(number) for number in range(len(items))] == sorted(items)
    with pytest.raises(IndexError):
        found.after(len(items))


@given(sets, sets, sets)
def test_union_difference_and_section_are_those_of_sets(one: set[int], two: set[int], three: set[int]) -> None:
    first, second = IndexSet(one), IndexSet(two)
    for found, expected in (
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
        assert found == expected
        assert found == IndexSet(expected)
        assert hash(found) == hash(IndexSet(expected))
        assert ranges_apart(found)
    assert (first <= second) == (one <= two)
    assert first.isdisjoint(second) == one.isdisjoint(two)


@given(sets)
def test_it_prints_compressed_and_reads_what_it_printed(items: set[int]) -> None:
    found = IndexSet(items)
    assert IndexSet.parse(str(found)) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert eval(repr(found), {"IndexSet": _Parsed}) == items


@given(st.lists(st.tuples(small, small)))
def test_ranges_make_the_set_of_their_indexes(pairs: list[tuple[int, int]]) -> None:
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
def test_it_is_spelt_like_people_write_it(items: tuple[int, ...], text: str) -> None:
    assert str(IndexSet(items)) == text
    assert IndexSet.parse(text) == set(items)


@pytest.mark.parametrize(
    "text", ["x", "1-", "-1", "3-1", "2,1", "1,1", "1-3,3", "1-3,2-5", "1--3", "1.5", "a-b", "1 2"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        IndexSet.parse(text)


def test_ranges_that_touch_are_read_as_one() -> None:
    assert IndexSet.parse("1-2,3,4-5") == IndexSet(range(1, 6))


def test_ten_million_indexes_in_a_range_are_one_range() -> None:
    rows = IndexSet(range(10_000_000))
    assert rows.ranges == ((0, 9_999_999),)
    assert len(rows) == 10_000_000
    holes = rows.without(IndexSet([0, 5_000_000]))
    assert str(holes) == "1-4999999,5000001-9999999"
    assert holes.within(IndexSet([7])) == {7}
    assert rows.first == 0


def test_ranges_with_steps_and_generators_are_taken_one_by_one() -> None:
    assert IndexSet(range(0, 9, 4)) == {0, 4, 8}
    assert IndexSet(range(5, 2, -1)) == {3, 4, 5}
    assert IndexSet(range(3, 3)) == set()
    assert IndexSet(index for index in (9, 1)) == {1, 9}
    assert IndexSet(IndexSet([1, 2])) == {1, 2}


def test_the_first_of_nothing_is_an_error() -> None:
    assert IndexSet([7, 3]).first == 3
    with pytest.raises(IndexError):
        _ = IndexSet().first


def test_what_is_no_integer_is_not_inside() -> None:
    assert "3" not in IndexSet([3])
    assert 3.0 not in IndexSet([3])
    assert IndexSet([3]) != "3"


class _Parsed(IndexSet):
    """Reads a repr."""

    def __new__(cls, text: str) -> IndexSet:  # type: ignore[misc]
        return IndexSet.parse(text)
