"""A watcher's board agrees with the store's own summary, whatever was written."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import IndexSet, Manager, Status, open_store
from celery_statemanager.cli.model import Board, Counts, Failure
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation

statuses = st.sampled_from([0, 1, 2, 40, 100, 5_000, int(Status.FINISHED), -1, -5, -12])
cells = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", "other"]), statuses), max_size=40)


def board_of(store, manager):
    board = Board(store.get_job(manager.ref.key), Scope())
    with manager.subscribe() as events:
        while (event := events.get(timeout=0)) is not None:
            board.apply(event.state)
    return board


@given(cells, st.booleans(), st.sampled_from([None, ("a", "b"), {"a": range(5), "b": [1, 3]}]))
def test_counts_are_those_of_the_summary(written, cancelled, tags):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=tags)
    for index, tag, status in written:
        Manager.open(store, "job", task_index=index).set_state(tag, status)
    if cancelled:
        record = store.get_job(manager.ref.key)
        store.update_job(replace(record, cancelled=Cancellation("why", store.now())))
    total, summary = board_of(store, manager).total(), manager.summary()
    assert (total.expected, total.finished, total.running) == (summary.expected, summary.finished, summary.running)
    assert (total.failed, total.waiting) == (summary.failed, summary.not_started)
    assert total.fraction == pytest.approx(summary.fraction)


@given(cells)
def test_changes_one_by_one_end_where_a_replay_ends(written):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a", "b"))
    live = Board(store.get_job(manager.ref.key), Scope())
    for index, tag, status in written:
        live.apply(Manager.open(store, "job", task_index=index).set_state(tag, status))
    replayed = board_of(store, manager)
    assert live.total() == replayed.total()
    assert live.running.keys() == replayed.running.keys()
    assert live.failures == replayed.failures


def test_a_running_row_keeps_its_place(job, state):
    board = Board(job(), Scope())
    for index in (5, 2, 7):
        board.apply(state(index, "ingest", 1))
    board.apply(state(2, "ingest", 50))
    assert [index for _, index in board.running] == [5, 2, 7]


def test_a_failure_that_recovers_is_forgotten(job, state):
    board = Board(job(), Scope())
    board.apply(state(5, "ingest", -1, "boom"))
    assert board.failures == {Failure("ingest", -1, "boom"): {5}}
    board.apply(state(5, "ingest", 1))
    assert not board.failures
    assert board.total() == Counts(200, 0, 1, 0, 199, 0.0)


def test_a_row_alone_counts_its_own_cells(job, state):
    board = Board(job(4, {"ingest": range(4), "export": [0, 1]}), Scope(task_index=3))
    board.apply(state(3, "ingest", Status.FINISHED))
    assert board.total() == Counts(1, 1, 0, 0, 0, 0.0)
    assert board.over


def test_an_unplanned_tag_counts_only_when_it_is_watched(job, state):
    board = Board(job(4), Scope())
    board.apply(state(1, "extra", 1))
    assert board.total().running == 0
    alone = Board(job(4), Scope(tag="extra"))
    alone.apply(state(1, "extra", 1))
    assert alone.total() == Counts(4, 0, 1, 0, 3, 0.0)


def test_a_cancelled_job_tells_what_was_never_begun(job, state):
    board = Board(job(10, ("ingest",), cancelled=Cancellation("enough", 0)), Scope())
    board.apply(state(4, "ingest", Status.FINISHED))
    assert list(board.never_begun()) == [
        (Failure("ingest", Status.CANCELLED, "enough"), IndexSet.from_ranges([(0, 3), (5, 9)]))
    ]
    assert board.total().failed == 9


def test_nothing_is_never_begun_in_a_job_that_goes_on(job):
    assert list(Board(job(), Scope()).never_begun()) == []


@given(cells, st.booleans())
def test_what_the_store_counted_is_shown_until_all_is_read(written, cancelled):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a", "b"))
    for index, tag, status in written:
        Manager.open(store, "job", task_index=index).set_state(tag, status)
    if cancelled:
        record = store.get_job(manager.ref.key)
        store.update_job(replace(record, cancelled=Cancellation("why", store.now())))
    record, columns = store.column_summaries(manager.ref)
    board = Board(record, Scope())
    board.column_summaries(columns)
    read = board_of(store, manager)
    read.loading = False
    assert board.total() == read.total()


def test_a_row_alone_is_not_counted_by_the_store(job):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a",), task_index=1)
    manager.set_state("a", Status.FINISHED)
    record, columns = store.column_summaries(manager.ref)
    board = Board(record, Scope(task_index=0))
    board.column_summaries(columns)
    assert board.total() == Counts(1, 0, 0, 0, 1, 0.0)
