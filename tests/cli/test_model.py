"""A watcher's model agrees with the store's summary for all writes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import IndexSet, Manager, Status, open_store
from celery_statemanager.cli.model import Counts, JobModel
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation

statuses = st.sampled_from([0, 1, 2, 40, 100, 5_000, int(Status.FINISHED), -1, -5, -12])
cells = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", "other"]), statuses), max_size=40)


def model_of(store, manager):
    model = JobModel(store.get_job(manager.ref.key), Scope())
    with manager.subscribe() as events:
        while (event := events.get(timeout=0)) is not None:
            model.apply(event.state)
    return model


def by_cause(model):
    return {group.cause: group.rows for group in model.failure_report().groups}


@given(cells, st.booleans(), st.sampled_from([None, ("a", "b"), {"a": range(5), "b": [1, 3]}]))
def test_the_counts_equal_those_of_the_summary(written, cancelled, tags):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=tags)
    for index, tag, status in written:
        Manager.open(store, "job", task_index=index).set_state(tag, status)
    if cancelled:
        record = store.get_job(manager.ref.key)
        store.update_job(replace(record, cancelled=Cancellation("why", store.now())))
    total, summary = model_of(store, manager).total(), manager.summary()
    assert (total.expected, total.finished, total.running) == (summary.expected, summary.finished, summary.running)
    assert (total.failed, total.not_run, total.waiting) == (summary.failed, summary.not_run, summary.not_started)
    assert total.fraction == pytest.approx(summary.fraction)


@given(cells)
def test_single_changes_and_a_replay_give_the_same_model(written):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a", "b"))
    live = JobModel(store.get_job(manager.ref.key), Scope())
    for index, tag, status in written:
        live.apply(Manager.open(store, "job", task_index=index).set_state(tag, status))
    replayed = model_of(store, manager)
    assert live.total() == replayed.total()
    assert live.running.keys() == replayed.running.keys()
    assert by_cause(live) == by_cause(replayed)


def test_a_running_row_keeps_its_position(job, state):
    model = JobModel(job(), Scope())
    for index in (5, 2, 7):
        model.apply(state(index, "ingest", 1))
    model.apply(state(2, "ingest", 50))
    assert [index for _, index in model.running] == [5, 2, 7]


def test_a_failure_that_recovers_is_removed(job, state):
    model = JobModel(job(), Scope())
    model.apply(state(5, "ingest", -1, "boom"))
    assert [str(group.rows.first) for group in model.failure_report().groups] == ["5"]
    model.apply(state(5, "ingest", 1))
    assert not model.failure_report().groups
    assert model.total() == Counts(expected=200, running=1, waiting=199)


def test_a_single_row_counts_its_own_cells(job, state):
    model = JobModel(job(4, {"ingest": range(4), "export": [0, 1]}), Scope(task_index=3))
    model.apply(state(3, "ingest", Status.FINISHED))
    assert model.total() == Counts(expected=1, finished=1)
    assert model.over


def test_an_unplanned_tag_counts_only_when_it_is_watched(job, state):
    model = JobModel(job(4), Scope())
    model.apply(state(1, "extra", 1))
    assert model.total().running == 0
    alone = JobModel(job(4), Scope(tag="extra"))
    alone.apply(state(1, "extra", 1))
    assert alone.total() == Counts(expected=4, running=1, waiting=3)


def test_a_cancelled_job_lists_the_cells_that_never_began(job, state):
    model = JobModel(job(10, ("ingest",), cancelled=Cancellation("enough", 0)), Scope())
    model.apply(state(4, "ingest", Status.FINISHED))
    assert list(model.never_begun()) == [
        ("ingest", IndexSet.from_ranges([(0, 3), (5, 9)])),
    ]
    assert model.total().failed == 9


def test_a_job_that_is_not_cancelled_lists_no_cells_that_never_began(job):
    assert list(JobModel(job(), Scope()).never_begun()) == []


@given(cells, st.booleans())
def test_the_counts_of_the_store_are_shown_until_all_cells_are_read(written, cancelled):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a", "b"))
    for index, tag, status in written:
        Manager.open(store, "job", task_index=index).set_state(tag, status)
    if cancelled:
        record = store.get_job(manager.ref.key)
        store.update_job(replace(record, cancelled=Cancellation("why", store.now())))
    record, columns = store.column_summaries(manager.ref)
    model = JobModel(record, Scope())
    model.column_summaries(columns)
    read = model_of(store, manager)
    read.loading = False
    assert model.total() == read.total()


def test_a_single_row_does_not_use_the_counts_of_the_store(job):
    store = open_store("memory://")
    manager = Manager.create(store, "job", num_tasks=5, tags=("a",), task_index=1)
    manager.set_state("a", Status.FINISHED)
    record, columns = store.column_summaries(manager.ref)
    model = JobModel(record, Scope(task_index=0))
    model.column_summaries(columns)
    assert model.total() == Counts(expected=1, waiting=1)
