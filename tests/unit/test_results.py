"""The results of rows: their encoding, their limits, and how a job returns them (rule R21)."""

import json
import math
import pickle
import tracemalloc
import uuid
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from celery import Celery, chain
from celery.backends.base import BaseBackend
from celery.exceptions import Ignore
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import (
    ConfigurationError,
    ResultUnavailable,
    StateError,
    StatefulTask,
    StateManager,
    Status,
    TaskFailed,
    WaitTimeout,
)
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.binding import RESULT, Binding
from celery_statemanager.integration.outbox.values import Unavailable, pass_on, result_to_text, results_of
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.submission import results
from celery_statemanager.records import JobKey, JobRef, Write, new_job

LAST = Binding(JobRef(JobKey("job"), "f" * 16), 3, "a", 1, next=RESULT)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals(allow_nan=False) | st.uuids()
    | st.datetimes(timezones=st.just(timezone.utc)) | st.dates()
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=20
)


@pytest.fixture(scope="module")
def backend():
    app = Celery("results", set_as_current=False)
    yield BaseBackend(app, serializer="json")
    app.close()


def same(one, other):
    """Return whether two values are equal, NaN too."""
    return repr(one) == repr(other)


class TestEncoding:
    @given(st.lists(values))
    def test_values_come_back_as_from_celerys_own_backends(self, backend, given):
        texts = [result_to_text(value, 10**6) for value in given]
        assert same(results_of(texts), [backend.decode(backend.encode(value)) for value in given])

    @pytest.mark.parametrize(
        "value", [Decimal("0.10"), uuid.UUID(int=7), datetime(2026, 1, 31, tzinfo=timezone.utc), date(2026, 1, 31)]
    )
    def test_dates_and_numbers_keep_their_types(self, value):
        assert results_of([result_to_text([value], 1_000)]) == [[value]]

    def test_numbers_that_are_not_finite_survive_as_with_celery(self):
        (found,) = results_of([result_to_text([math.nan, math.inf], 1_000)])
        assert math.isnan(found[0])
        assert found[1] == math.inf

    def test_a_result_of_celery_is_stored_as_its_ids(self, backend):
        result = backend.app.AsyncResult("some-id")
        assert results_of([result_to_text(result, 1_000)]) == [[["some-id", None], None]]

    @pytest.mark.parametrize(
        "value", [object(), {1, 2}.__iter__(), {"a": lambda: 0}, {(1, 2): 3}], ids=["object", "iterator", "code", "key"]
    )
    def test_a_value_that_cannot_be_encoded_leaves_its_reason(self, value):
        (found,) = results_of([result_to_text(value, 1_000)])
        assert isinstance(found, Unavailable)
        assert found.startswith("it cannot be encoded as JSON: ")

    def test_a_value_that_contains_itself_or_raises_leaves_its_reason(self):
        class Raising:
            def __json__(self):
                raise OSError("no disk")

        endless = []
        endless.append(endless)
        for value in (endless, Raising()):
            assert isinstance(results_of([result_to_text(value, 1_000)])[0], Unavailable)

    def test_a_value_that_cannot_be_decoded_leaves_the_others(self):
        """Kombu reserves these two keys for the types that it adds to JSON."""
        values = [1, {"__type__": "odd", "__value__": 2}, {"__type__": "datetime", "__value__": "noon"}, 3]
        found = results_of([result_to_text(value, 1_000) for value in values])
        assert (found[0], found[3]) == (1, 3)
        assert [type(each) for each in found[1:3]] == [Unavailable, Unavailable]
        assert found[1].startswith("it cannot be decoded: ")

    def test_the_limit_counts_the_bytes_of_the_text(self):
        assert results_of([result_to_text("x" * 98, 100)]) == ["x" * 98]
        (found,) = results_of([result_to_text("x" * 99, 100)])
        assert found == "it takes 101 bytes, more than statemanager_max_result_bytes = 100"

    def test_values_and_reasons_are_told_apart(self):
        texts = [result_to_text(each, 9) for each in ("!", "=", "x" * 50, None)]
        found = results_of([*texts, '"the value of an earlier stage"', "c2Vjb25k", "NaN"])
        assert [*found[:2], found[3]] == ["!", "=", None]
        assert [type(each) for each in (found[2], *found[4:])] == [Unavailable] * 4

    def test_the_last_stage_keeps_its_value_and_makes_nothing_due(self):
        write = Write.ending("a", 3, Status.FINISHED, attempt=1)
        assert pass_on(write, LAST, {"a": 1}) is None
        assert (write.value, write.next_is_due) == ('={"a": 1}', False)
        assert Binding.from_header(LAST.to_header()) == LAST


def new_app(**settings):
    settings = {"task_always_eager": True, "statemanager_store_url": "memory://", **settings}
    return Celery("eager", set_as_current=False, **settings)


def _finished(row, size):
    return Write("a", row, int(Status.FINISHED), value=result_to_text(f"{row:0{size}}", 10**6))


@pytest.fixture
def app():
    app = new_app()
    yield app
    app.close()


@pytest.fixture
def states(app):
    return StateManager(app)


@pytest.fixture
def double(app):
    @app.task(shared=False, base=StatefulTask, tag="double")
    def double(value):
        if value is None:
            raise StateError(-42, "nothing to double")
        return value * 2

    return double


class TestJob:
    def test_the_results_of_rows_in_row_order(self, states, double):
        job = states.submit([double.s(row) for row in range(5)], results=True)
        assert list(job.results()) == [(row, 2 * row) for row in range(5)]
        assert list(job.results("1,3-4")) == [(1, 2), (3, 6), (4, 8)]
        assert list(job.results([4, 1])) == [(1, 2), (4, 8)]
        assert job.get() == [0, 2, 4, 6, 8]
        assert states.job(job.id).get(timeout=0) == [0, 2, 4, 6, 8]

    def test_the_result_of_a_chain_is_that_of_its_last_stage(self, app, states, double):
        @app.task(shared=False, base=StatefulTask, tag="second")
        def second(value):
            if value == 4:
                raise ValueError("four")
            return [value]

        job = states.submit([chain(double.s(row), second.s()) for row in range(4)], results=True)
        assert list(job.results()) == [(0, [0]), (1, [2]), (3, [6])]

    def test_a_plain_task_has_a_result(self, app, states):
        @app.task(shared=False)
        def plain():
            return {"at": datetime(2026, 1, 31, tzinfo=timezone.utc)}

        assert states.submit([plain.s()], results=True).get() == [{"at": datetime(2026, 1, 31, tzinfo=timezone.utc)}]

    def test_a_task_that_returns_nothing_has_the_result_none(self, app, states):
        @app.task(shared=False, base=StatefulTask)
        def nothing(): ...

        assert states.submit([nothing.s()], results=True).get() == [None]

    def test_the_first_row_that_failed(self, app, states, double):
        @app.task(shared=False, base=StatefulTask, tag="a later one")
        def later(value): ...

        members = [double.s(1) | later.s(), double.s(None) | later.s(), double.s(None) | later.s()]
        job = states.submit(members, results=True)
        with pytest.raises(TaskFailed) as caught:
            job.get()
        error = pickle.loads(pickle.dumps(caught.value))
        found = (error.job_id, error.task_index, error.tag, error.status, error.message)
        assert found == (job.id, 1, "double", -42, "nothing to double")
        assert str(error) == f"task 1 of job {job.id!r} failed in 'double' with status -42: nothing to double"
        assert list(job.results()) == [(0, None)]

    def test_a_task_that_is_ignored_has_no_result(self, app, states):
        @app.task(shared=False, base=StatefulTask)
        def ignored():
            raise Ignore

        job = states.submit([ignored.s()], results=True)
        assert list(job.results()) == []
        with pytest.raises(TaskFailed, match=r"task 0 .*status -"):
            job.get()

    def test_the_result_of_a_replaced_task_is_that_of_its_replacement(self, app, states, double):
        @app.task(shared=False, base=StatefulTask, bind=True)
        def replaced(self, value):
            raise self.replace(double.s(value) | double.s())

        assert states.submit([replaced.s(1), double.s(5)], results=True).get() == [4, 10]

    def test_the_result_of_a_retried_task_is_that_of_its_last_attempt(self, app, states):
        @app.task(shared=False, base=StatefulTask, bind=True, max_retries=2, default_retry_delay=0)
        def retried(self):
            if self.request.retries < 2:
                raise self.retry()
            return self.request.retries

        @app.task(shared=False, base=StatefulTask, bind=True, autoretry_for=(OSError,), default_retry_delay=0)
        def autoretried(self):
            if not self.request.retries:
                raise OSError
            return "at last"

        assert states.submit([retried.s(), autoretried.s()], results=True).get() == [2, "at last"]

    @pytest.mark.parametrize("use", [lambda job: job.results(), lambda job: job.get(0)], ids=["results", "get"])
    def test_a_job_without_results_says_how_to_get_them(self, states, double, use):
        job = states.submit([double.s(1)])
        with pytest.raises(ResultUnavailable, match="submit it with results=True") as caught:
            use(job)
        assert (caught.value.job_id, caught.value.task_index) == (job.id, None)
        assert states.store.get_value(job.manager.ref, 0) is None

    def test_a_task_may_ask_for_its_results(self, app, states, double):
        @app.task(shared=False, base=StatefulTask, keep_result=True)
        def kept(value=0):
            return value + 1

        @app.task(shared=False, keep_result=True)
        def plain():
            return "plain"

        job = states.submit([double.s(1), kept.s(1), double.s(2) | kept.s(), kept.s(3) | double.s(), plain.s()])
        assert list(job.results()) == [(1, 2), (2, 5), (4, "plain")]
        with pytest.raises(ResultUnavailable, match=r"task 0 .*results=True"):
            job.get()
        assert states.submit([kept.s(1), kept.s(2)]).get() == [2, 3]

    def test_a_result_that_cannot_be_kept_does_not_fail_its_row(self, app, double):
        app.conf.statemanager_max_result_bytes = 20

        @app.task(shared=False, base=StatefulTask)
        def unusual(value):
            return object() if value is None else "x" * value

        states = StateManager(app)
        job = states.submit([unusual.s(1), unusual.s(None), unusual.s(100), unusual.s(18)], results=True)
        assert job.summary().finished == 4
        assert list(job.results("0,3")) == [(0, "x"), (3, "x" * 18)]
        for row, text in ((1, "it cannot be encoded as JSON"), (2, "102 bytes.*statemanager_max_result_bytes = 20")):
            with pytest.raises(ResultUnavailable, match=text) as caught:
                list(job.results([row]))
            assert pickle.loads(pickle.dumps(caught.value)).task_index == row
            assert f"task {row} of job {job.id!r}" in str(caught.value)
        with pytest.raises(ResultUnavailable, match="task 1 "):
            job.get()

    def test_a_row_that_was_finished_by_hand_has_no_result(self, app, states, double):
        @app.task(shared=False, base=StatefulTask, bind=True)
        def ignored(self):
            self.state.manager.set_state("default", Status.FINISHED)
            raise Ignore

        job = states.submit([double.s(1), ignored.s()], results=True)
        states.store.write(job.manager.ref, Write("default", 1, int(Status.FINISHED)))
        reading = job.results()
        assert next(reading) == (0, 2)
        with pytest.raises(ResultUnavailable, match="without the end of its task"):
            next(reading)

    def test_a_row_that_still_runs_has_no_result(self, app, states, double):
        """Not even the value of its first stage, and although its task has written FINISHED already."""
        seen = []

        @app.task(shared=False, base=StatefulTask, bind=True, tag="second")
        def second(self, value):
            self.state.set(Status.FINISHED)
            seen.append(list(states.current_job().results()))
            return "second"

        job = states.submit([double.s(1) | second.s(), double.s(2) | second.s()], results=True)
        assert seen == [[], [(0, "second")]]
        assert job.get() == ["second"] * 2

    def test_a_job_that_does_not_settle_in_time(self, app, states, double):
        waited = []

        @app.task(shared=False, base=StatefulTask, bind=True)
        def impatient(self):
            try:
                states.current_job().get(timeout=0)
            except WaitTimeout as error:
                waited.append(error.timeout)

        states.submit([impatient.s()], results=True)
        assert waited == [0]

    def test_planned_tags_without_a_task_belong_to_the_row(self, states, double):
        job = states.submit([double.s(1), double.s(2)], tags=("double", "extra"), results=True)
        assert list(job.results()) == []
        states.store.write(job.manager.ref, Write("extra", 1, int(Status.FINISHED)))
        assert list(job.results()) == [(1, 4)]

    def test_rows_that_do_not_exist_are_refused(self, states, double):
        job = states.submit([double.s(1)], results=True)
        with pytest.raises(ValueError, match="task_index must be 0 … 0, not 1"):
            job.results([1])

    @pytest.mark.parametrize("value", [1, None, "yes"])
    def test_results_is_true_or_false(self, states, double, value):
        with pytest.raises(TypeError, match=r"results must be True or False, not "):
            states.submit([double.s(1)], results=value)

    def test_many_results_are_read_in_bounded_memory(self, states, double, monkeypatch):
        job = states.submit([double.s("x" * 1_000) for _ in range(600)], results=True)
        sizes = []
        monkeypatch.setattr(results, "results_of", lambda texts: sizes.append(len(texts)) or results_of(texts))
        assert [row for row, value in job.results() if value == "x" * 2_000] == list(range(600))
        assert max(sizes) < 200

    @pytest.mark.parametrize("size", [100, 100_000])
    def test_results_are_read_in_flat_memory(self, tmp_path, size):
        app = new_app(statemanager_store_url=f"sqlite:///{tmp_path}/states.db")
        store = StateManager(app).store
        rows = 20_000 if size == 100 else 300
        store.create_job(replace(new_job("large", rows, ("a",)), results="every"))
        job = StateManager(app).job("large")
        for row in range(rows):
            store.write(job.manager.ref, _finished(row, size))
        tracemalloc.start()
        assert sum(1 for _ in job.results()) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6_000_000
        store.close()

    def test_the_finished_rows_of_a_job(self, states, double):
        job = states.submit([double.s(None if row % 3 else row) for row in range(9)], results=True)
        assert results.finished_rows(states.store, job._record)[1] == IndexSet([0, 3, 6])


class TestRecord:
    def test_a_store_keeps_which_rows_keep_results(self, states, double):
        job = states.submit([double.s(1)], results=True)
        assert states.store.get_job(job.manager.ref.key).results == "every"
        job.cancel()
        record = states.store.get_job(job.manager.ref.key)
        states.store.update_job(replace(record, tombstoned_at=1))
        assert states.store.get_job(job.manager.ref.key).results == "every"


class TestSettings:
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", 900_000, math.nan])
    def test_a_limit_that_no_store_keeps_is_refused(self, value):
        with pytest.raises(ConfigurationError, match="statemanager_max_result_bytes must be "):
            Settings.from_app(new_app(statemanager_max_result_bytes=value))

    def test_the_largest_limit(self):
        assert Settings.from_app(new_app(statemanager_max_result_bytes=899_999)).max_result_bytes == 899_999


def test_texts_are_json_behind_one_character():
    assert json.loads(result_to_text({"a": [1, "ß", timedelta(1).days]}, 100)[1:]) == {"a": [1, "ß", 1]}
