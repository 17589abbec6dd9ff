"""The values that the PostgreSQL store computes without a server: shards, positions, encodings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager.indexset import IndexSet
from celery_statemanager.stores.postgres.cells import escaped, event_of, packed, unescaped
from celery_statemanager.stores.postgres.position import Position, Snapshot
from celery_statemanager.stores.postgres.reads import joined
from celery_statemanager.stores.postgres.writing import sharded


@given(st.sets(st.integers(0, 400)))
def test_ranges_are_divided_among_shards_and_joined_again(rows: set[int]) -> None:
    gaps = sharded(IndexSet(rows).ranges)
    assert joined(gaps) == IndexSet(rows)
    assert all(low <= high for _, low, high in gaps)


def test_a_range_of_many_rows_stays_one_range() -> None:
    assert joined(sharded([(5, 9_999_990)])).ranges == ((5, 9_999_990),)
    assert len(sharded([(0, 9_999_999)])) == 16


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_texts_are_encoded_without_nul_and_decoded(text: str) -> None:
    stored = escaped(text)
    assert stored is not None
    assert "\0" not in stored
    assert unescaped(stored) == text


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40))
def test_event_ids_are_encoded_and_decoded(event_id: str) -> None:
    assert event_of(packed(event_id)) == event_id


@pytest.mark.parametrize("event_id", ["", "0" * 32, "AB" * 16, "x" * 15, "x" * 16, "x" * 14])
def test_event_ids_of_any_length_differ(event_id: str) -> None:
    assert event_of(packed(event_id)) == event_id


def position(running: tuple[int, ...] = (), xmax: int = 1_000_100) -> Position:
    return Position.at_end(Snapshot(1_000_000, xmax, running), 1_800_000_000_000_000, 2**31 - 1, 600_000_000)


def test_a_position_is_encoded_and_decoded() -> None:
    for given_position in (position(), position(xmax=1_000_000), position((1_000_000, 1_000_007))):
        decoded = Position.decode(str(given_position))
        assert len(str(given_position)) <= 100
        assert (decoded.complete, decoded.time, decoded.seen) == (
            given_position.complete,
            given_position.time,
            given_position.seen,
        )


def test_a_position_with_many_running_transactions_is_shortened_and_repeats_changes() -> None:
    text = str(position(tuple(range(1_000_000, 1_000_090))))
    decoded = Position.decode(text)
    assert len(text) <= 100
    assert decoded.complete == decoded.time == position().complete


def test_a_position_is_complete_once_all_transactions_of_an_earlier_snapshot_have_ended() -> None:
    first = position((1_000_000,))
    assert first.complete == first.time - 600_000_000
    waits = first.advanced(Snapshot(1_000_000, 1_000_200, (1_000_000,)), first.time + 5)
    assert (waits.complete, waits.time) == (first.complete, first.time + 5)
    ended = waits.advanced(Snapshot(1_000_150, 1_000_300, (1_000_150,)), first.time + 9)
    assert (ended.complete, ended.time) == (first.time, first.time + 9)
    quiet = ended.advanced(Snapshot(1_000_400, 1_000_400), first.time + 12)
    assert quiet.complete == quiet.time == first.time + 12
