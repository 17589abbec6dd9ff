"""Every error says what happened and what mends it, and survives pickling and Celery's ``cls(*args)``."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import threading

import pytest

import celery_statemanager
from celery_statemanager import State, errors

STATE = State("job", 3, "scan", -42, "bad disk")

EXAMPLES: dict[errors.StateManagerError, tuple[type[Exception] | None, str]] = {
    errors.StateManagerError("text"): (None, "text"),
    errors.ConfigurationError("text"): (ValueError, "text"),
    errors.JobExists("etl"): (ValueError, "job 'etl' exists; open it, delete it, or give a new job_id or run_token"),
    errors.JobExists("etl", "r1"): (ValueError, "job 'etl' (run token 'r1') exists"),
    errors.JobNotFound("etl", "r1"): (LookupError, "check the job_id, the run_token and the store"),
    errors.TaskMismatch("etl", 3, 5): (ValueError, "a Manager writes only its own row; open one with task_index=5"),
    errors.ReadOnlyManager("etl"): (TypeError, "open it with task_index=… to write"),
    errors.BeginRefused("etl", "scan", 3, "finished"): (None, "it is FINISHED already, and nothing is left to do"),
    errors.BeginRefused("etl", "scan", 3, "odd"): (None, "may not begin 'scan': odd"),
    errors.AttemptSuperseded("etl", "scan", 3, 1, 2): (None, "attempt 1 of 'scan', task 3, job 'etl' was refused"),
    errors.AttemptSuperseded("etl", "scan", 3, 2, 2): (None, "that attempt has ended; stop working for it"),
    errors.AttemptSuperseded("etl", "scan", 3, None, 2): (None, "a write without attempt of 'scan'"),
    errors.JobCancelled("etl", "user asked"): (None, "job 'etl' was cancelled, stop working for it: user asked"),
    errors.JobCancelled("etl"): (None, "job 'etl' was cancelled, stop working for it"),
    errors.StateError(-42, "bad disk"): (None, "bad disk (status -42)"),
    errors.StateError(-42): (None, "failed (status -42)"),
    errors.SynchronizeFailed("etl", "scan", 10, STATE): (None, "task 3 failed with status -42 (bad disk)"),
    errors.SynchronizeTimeout("etl", "scan", 10, "1-3,5", [STATE], 2.5): (
        TimeoutError,
        "waiting for task 1-3,5; wait longer",
    ),
    errors.WaitTimeout("etl", 60.0, None): (TimeoutError, "had not settled after 60.0 s"),
    errors.SubscriptionLost("etl", "gone"): (ConnectionError, "to job 'etl' is lost: gone; subscribe again"),
    errors.SubmitFailed("etl", 3, 7): (None, "failed after 3 of 7 messages; the job is cancelled"),
    errors.SubmitFailed("etl", 3, 7, "OSError: no"): (None, "3 of 7 messages: OSError: no; the job is cancelled"),
    errors.StoreError("text"): (None, "text"),
    errors.StoreUnavailable("text"): (ConnectionError, "text"),
    errors.StoreContended("text"): (ConnectionError, "text"),
}
ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
PUBLIC = [kind for kind in ALL if not kind.__name__.startswith("_")]


def kind_of(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", EXAMPLES, ids=kind_of)
def test_its_text_says_what_happened_and_the_mend(error: errors.StateManagerError) -> None:
    assert EXAMPLES[error][1] in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=kind_of)
def test_it_is_the_builtin_kind_that_callers_expect(error: errors.StateManagerError) -> None:
    builtin = EXAMPLES[error][0]
    assert isinstance(error, errors.StateManagerError)
    assert isinstance(error, builtin or Exception)


@pytest.mark.parametrize("error", EXAMPLES, ids=kind_of)
def test_it_is_rebuilt_from_its_args_with_the_same_text(error: errors.StateManagerError) -> None:
    rebuilt = type(error)(*error.args)
    assert str(rebuilt) == str(error)
    assert rebuilt.args == error.args
    assert _attributes(rebuilt) == _attributes(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=kind_of)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_pickling(error: errors.StateManagerError, protocol: int) -> None:
    found = pickle.loads(pickle.dumps(error, protocol))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert _attributes(found) == _attributes(error)
    assert str(copy.copy(error)) == str(error)


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_error_has_an_example_here(kind: type[Exception]) -> None:
    assert kind in {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_error_is_public_shadows_no_builtin_and_stands_in_the_drawn_tree(kind: type[Exception]) -> None:
    assert getattr(celery_statemanager, kind.__name__) is kind
    assert kind.__name__ in celery_statemanager.__all__
    assert not hasattr(builtins, kind.__name__)
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("code", [0, 1, -(2**31) - 1, True, -1.0, "-1", None], ids=repr)
def test_an_error_code_is_a_negative_int32(code: object) -> None:
    with pytest.raises(ValueError, match="an error code is a negative int32"):
        errors.StateError(code)  # type: ignore[arg-type]


def test_what_they_carry_can_be_asked() -> None:
    late = errors.SynchronizeTimeout("etl", "scan", 10, "1-3,5", [STATE], 2.5)
    assert (late.states, late.missing, late.timeout) == ([STATE], "1-3,5", 2.5)
    failed = errors.SynchronizeFailed("etl", "scan", 10, STATE)
    assert failed.state is STATE
    assert errors.SubmitFailed("etl", 3, 7).job is None


def test_a_submit_that_failed_travels_without_its_job() -> None:
    """The job holds a store, and a store locks and connections."""
    error = errors.SubmitFailed("etl", 3, 7)
    error.job = threading.Lock()
    found = pickle.loads(pickle.dumps(error))
    assert (found.published, found.total, found.job) == (3, 7, None)


def test_a_text_names_so_many_rows_as_it_has_room_for_and_the_error_all() -> None:
    missing = ",".join(map(str, range(1_000_000, 1_100_000, 2)))
    late = errors.SynchronizeTimeout("etl", "scan", 10, missing, [], 2.5)
    assert late.missing == missing
    assert "waiting for task 1000000,1000002," in str(late)
    assert ",1000046,1000048 and more; wait longer" in str(late)


def _attributes(error: Exception) -> dict[str, object]:
    return dict(vars(error))
