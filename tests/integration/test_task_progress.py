"""``self.state.progress`` with invalid values never fails the task."""

import logging
import os
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from pathlib import Path

import pytest
from celery import Celery

from celery_statemanager import Manager, StatefulTask, StateManager, Status, current_state

LOGGER = "celery_statemanager.integration.task.progress"
NAN, INFINITY = float("nan"), float("inf")


@Integral.register
class Count:
    """An integer as those of NumPy, a ``numbers.Integral`` that is no ``int``."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return self.value

    __index__ = __int__

    def __repr__(self):
        return f"Count({self.value})"


class BrokenCount(Count):
    def __int__(self):
        raise RuntimeError("no value")


class Classless:
    @property
    def __class__(self):
        raise RuntimeError("no class")


@pytest.fixture
def app():
    return Celery(
        "eager",
        set_as_current=False,
        task_always_eager=True,
        statemanager_store_url="memory://",
        statemanager_progress_interval=0.0,
    )


@pytest.fixture
def states(app):
    return StateManager(app)


def report(app, states, name, *calls):
    """Run a task that reports progress; return the job and the result of each call."""
    returned = []

    @app.task(shared=False, base=StatefulTask, bind=True, name=name, tag="work")
    def task(self):
        returned.extend(self.state.progress(*call) for call in calls)

    return states.submit([task.s()]), returned


def warnings_of(caplog):
    return [each.getMessage() for each in caplog.records if each.name == LOGGER and each.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("done", "total", "status", "kept"),
    [
        (11, 10, 100, (10, 10)),
        (0, 0, 1, (0, 1)),
        (-1, 5, 1, (0, 5)),
        (3, 0, 100, (1, 1)),
        (3, -2, 100, (1, 1)),
        (INFINITY, 4, 100, (4, 4)),
        (-INFINITY, 4, 1, (0, 4)),
        (True, 2, 50, (1, 2)),
        (Decimal("-2.5"), 5, 1, (0, 5)),
        (Decimal("Infinity"), 5, 100, (5, 5)),
        (Fraction(10**400), 5, 100, (5, 5)),
        (Count(11), Count(10), 100, (10, 10)),
        (10**400, 5.0, 100, (5.0, 5.0)),
    ],
)
def test_values_out_of_range_are_clamped(app, states, caplog, done, total, status, kept):
    name = f"clamped {done!r:.20} {total!r}"
    job, (state,) = report(app, states, name, (done, total, "at work"))
    assert job.summary().finished == 1
    assert (state.status, state.message) == (status, "at work")
    assert (state.payload["progress"]["done"], state.payload["progress"]["total"]) == kept
    (warning,) = warnings_of(caplog)
    assert name in warning
    assert f"{done!r:.20}" in warning


@pytest.mark.parametrize(
    ("done", "total"),
    [
        (NAN, 5),
        (1, NAN),
        (1, INFINITY),
        ("1", "2"),
        (None, 5),
        (1j, 5),
        ([], 5),
        (1 << 20_000, 1 << 20_001),
        (Decimal("sNaN"), 5),
        (1, Decimal("NaN")),
        (1, Fraction(10**400)),
        (BrokenCount(1), 5),
        (Classless(), 5),
    ],
    ids=range(13),
)
def test_values_that_are_not_finite_numbers_are_not_written(app, states, caplog, done, total):
    job, returned = report(app, states, f"unwritten {type(done)} {type(total)} {os.urandom(4)}", (1, 2), (done, total))
    assert job.summary().finished == 1
    assert returned[1] is None
    assert job.get_state("work", 0).payload == {"progress": {"done": 2, "total": 2}}
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize(
    ("message", "kept"),
    [(Path("a/b"), "a/b"), (7, "7"), ("lone \udc80", "lone ?"), ("x" * 70_000, "x" * 1_999 + "…")],
)
def test_a_message_that_cannot_be_stored_is_converted(app, states, caplog, message, kept):
    job, (state,) = report(app, states, f"message {kept:.8}", (1, 2, message))
    assert job.summary().finished == 1
    assert state.message == kept
    assert len(warnings_of(caplog)) == 1


class Silent:
    """A value that cannot be printed, such as a lazy object whose database is closed."""

    def __repr__(self):
        raise RuntimeError("nothing to say")


@pytest.mark.parametrize("call", [(Silent(), 2), (1, Silent()), (1, 2, Silent())], ids=["done", "total", "message"])
def test_values_that_cannot_be_printed_do_not_fail_the_task(app, states, caplog, call):
    name = f"unprintable {len(call)} {os.urandom(4)}"
    job, _ = report(app, states, name, call)
    assert job.summary().finished == 1
    (warning,) = warnings_of(caplog)
    assert "Silent without a repr" in warning


def test_a_message_that_cannot_be_converted_to_text_is_omitted(app, states):
    job, (state,) = report(app, states, "silent", (1, 2, Silent()))
    assert job.summary().finished == 1
    assert (state.status, state.message) == (50, None)


def test_a_message_is_truncated_to_a_low_limit_of_bytes(states, app):
    app.conf.statemanager_max_state_bytes = 40
    job, (state,) = report(app, states, "short limit", (1, 2, "ä" * 100))
    assert job.summary().finished == 1
    assert state.message == "ä" * 9 + "…"


def test_invalid_values_are_logged_once_per_task_name(app, states, caplog):
    report(app, states, "first", (11, 10), (12, 10), (-1, 10))
    report(app, states, "second", (11, 10), (NAN, 10))

    @app.task(shared=False, name="third")
    def plain():
        current_state().progress(11, 10)
        current_state().progress(12, 10)

    states.submit([plain.s(), plain.s()])
    warnings = warnings_of(caplog)
    assert len(warnings) == 3
    assert all(
        name in text and "11" in text and "10" in text for name, text in zip(("first", "second", "third"), warnings)
    )


def test_values_in_range_are_reported_without_a_warning(app, states, caplog):
    _, returned = report(app, states, "in range", (0, 10), (5, 10), (1.5, 3), (10, 10))
    assert [state.status for state in returned] == [1, 50, 50, 100]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("done", "total", "status", "kept"),
    [
        (Count(3), 10, 30, (3, 10)),
        (Count(3), Count(10), 30, (3, 10)),
        (Decimal("2.5"), 5, 50, (2.5, 5)),
        (Fraction(1, 2), Fraction(2), 25, (0.5, 2.0)),
    ],
)
def test_numbers_of_other_types_are_reported_without_a_warning(app, states, caplog, done, total, status, kept):
    job, (state,) = report(app, states, f"number {done!r} {total!r}", (done, total))
    assert job.summary().finished == 1
    assert state.status == status
    assert state.payload == {"progress": {"done": kept[0], "total": kept[1]}}
    assert warnings_of(caplog) == []
    manager = Manager.create(states.store, f"by a manager {done!r} {total!r}", num_tasks=1, task_index=0)
    assert manager.progress("work", done, total).payload == state.payload


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "float64", "longdouble"])
def test_numbers_of_numpy_are_reported(app, states, caplog, kind):
    number = getattr(pytest.importorskip("numpy"), kind)
    job, (progress,) = report(app, states, f"numpy {kind}", (number(3), number(10)))
    assert (progress.status, progress.payload) == (30, {"progress": {"done": 3, "total": 10}})
    assert job.summary().finished == 1


def test_a_manager_raises_for_values_out_of_range(app, states):
    @app.task(shared=False, base=StatefulTask, bind=True, name="by manager", tag="work")
    def task(self):
        self.state.manager.progress("work", 11, 10)

    job = states.submit([task.s()])
    assert job.get_state("work", 0).status == Status.FAILED
    assert "11 of 10" in job.get_state("work", 0).message
