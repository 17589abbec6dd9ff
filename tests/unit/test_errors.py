"""Messages and attributes of errors, and their copies by pickle and by Celery's ``cls(*args)``."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import pickle
import threading

import pytest

import celery_statemanager
from celery_statemanager import State, errors

STATE = State("job", 3, "scan", -42, "bad disk")

EXAMPLES: dict[errors.StateManagerError, tuple[type[Exception] | None, str]] = {
    errors.StateManagerError("text"): (None, "text"),
    errors.ConfigurationError("text"): (ValueError, "text"),
    errors.JobExists("etl"): (
        ValueError,
        "job 'etl' already exists; open it, delete it, or choose another job_id or run_token",
    ),
    errors.JobExists("etl", "r1"): (ValueError, "job 'etl' (run token 'r1') already exists"),
    errors.JobNotFound("etl", "r1"): (LookupError, "check the job_id, the run_token and the store"),
    errors.JobNotFound("etl", None, ["r2", None, "r1"]): (
        LookupError,
        "no job 'etl' in this store; runs of it: one without run_token, 'r1', 'r2'; pass one of them as run_token",
    ),
    errors.JobNotFound("etl", "r9", tuple("abcdefg")): (LookupError, "'a', 'b', 'c', 'd', 'e' and more; pass one"),
    errors.JobNotCommitted("etl", "r1", "shop"): (LookupError, "the transaction on 'shop' in which it was submitted"),
    errors.TaskMismatch("etl", 3, 5): (ValueError, "a Manager writes only its own row; open one with task_index=5"),
    errors.ReadOnlyManager("etl"): (TypeError, "open it with task_index=… to write"),
    errors.BeginRefused("etl", "scan", 3, "finished"): (None, "it is already FINISHED; skip this delivery"),
    errors.BeginRefused("etl", "scan", 3, "odd"): (None, "cannot begin 'scan': odd"),
    errors.AttemptSuperseded("etl", "scan", 3, 1, 2): (
        None,
        "job 'etl' rejected a write by attempt 1 to 'scan', task 3: attempt 2",
    ),
    errors.AttemptSuperseded("etl", "scan", 3, 2, 2): (None, "that attempt has ended; stop working on this task"),
    errors.AttemptSuperseded("etl", "scan", 3, 3, 2): (
        None,
        "the store has no record of that attempt, its latest is 2; stop",
    ),
    errors.AttemptSuperseded("etl", "scan", 3, None, 2): (None, "a write without an attempt to 'scan'"),
    errors.JobCancelled("etl", "user asked"): (None, "job 'etl' was cancelled (user asked); stop working on it"),
    errors.TaskStalled("etl", "scan", 3, "stalled: nothing was written for 4m 10s"): (
        None,
        "job 'etl', task 3, 'scan': stalled: nothing was written for 4m 10s",
    ),
    errors.JobCancelled("etl"): (None, "job 'etl' was cancelled; stop working on it"),
    errors.StateError(-42, "bad disk"): (None, "bad disk (status -42)"),
    errors.StateError(-42): (None, "failed (status -42)"),
    errors.SynchronizeFailed("etl", "scan", 10, STATE): (None, "task 3 failed with status -42 (bad disk)"),
    errors.SynchronizeTimeout("etl", "scan", 10, "1-3,5", [STATE], 2.5): (
        TimeoutError,
        "still waiting for task 1-3,5; increase the timeout",
    ),
    errors.WaitTimeout("etl", 60.0, None): (TimeoutError, "did not settle within 60.0 s"),
    errors.SubscriptionLost("etl", "gone"): (ConnectionError, "to job 'etl' is lost: gone; subscribe again"),
    errors.SubmitFailed("etl", 3): (None, "failed at member 3; no message was sent, and no job was created"),
    errors.SubmitFailed("etl", 3, "OSError: no"): (None, "failed at member 3: OSError: no; no message was sent"),
    errors.SubmitFailed("etl", 0, "OSError: no", 0): (None, "at member 0: OSError: no; the job is cancelled; correct"),
    errors.TaskFailed("etl", 3, "scan", -42, "bad disk"): (
        None,
        "task 3 of job 'etl' failed in 'scan' with status -42: bad disk",
    ),
    errors.TaskFailed("etl", 3, "scan", 50): (None, "has not finished in 'scan' with status 50: no message"),
    errors.ResultUnavailable("etl", 3, "it is too large"): (LookupError, "no result of task 3 of job 'etl': it is too"),
    errors.ResultUnavailable("etl", None, "it has none"): (LookupError, "no result of job 'etl': it has none"),
    errors.StoreError("text"): (None, "text"),
    errors.StoreUnavailable("text"): (ConnectionError, "text"),
    errors.StoreContended("text"): (ConnectionError, "text"),
}
ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
PUBLIC = [kind for kind in ALL if not kind.__name__.startswith("_")]


def class_name(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
def test_the_message_contains_the_cause_and_the_remedy(error: errors.StateManagerError) -> None:
    assert EXAMPLES[error][1] in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
def test_an_error_is_an_instance_of_its_builtin_class(error: errors.StateManagerError) -> None:
    builtin = EXAMPLES[error][0]
    assert isinstance(error, errors.StateManagerError)
    assert isinstance(error, builtin or Exception)


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
def test_an_error_rebuilt_from_its_args_is_equal(error: errors.StateManagerError) -> None:
    rebuilt = type(error)(*error.args)
    assert str(rebuilt) == str(error)
    assert rebuilt.args == error.args
    assert vars(rebuilt) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_can_be_pickled_and_copied(error: errors.StateManagerError, protocol: int) -> None:
    unpickled = pickle.loads(pickle.dumps(error, protocol))
    assert type(unpickled) is type(error)
    assert str(unpickled) == str(error)
    assert vars(unpickled) == vars(error)
    assert str(copy.copy(error)) == str(error)


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_public_error_has_an_example(kind: type[Exception]) -> None:
    assert kind in {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_error_is_exported_and_listed_in_the_module_docstring(kind: type[Exception]) -> None:
    assert getattr(celery_statemanager, kind.__name__) is kind
    assert kind.__name__ in celery_statemanager.__all__
    assert not hasattr(builtins, kind.__name__)
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("code", [0, 1, -(2**31) - 1, True, -1.0, "-1", None], ids=repr)
def test_state_error_rejects_codes_that_are_not_negative_int32(code: object) -> None:
    with pytest.raises(ValueError, match="an error code must be a negative int32"):
        errors.StateError(code)  # type: ignore[arg-type]


def test_a_job_not_found_rebuilt_from_json_names_the_same_runs() -> None:
    error = errors.JobNotFound("etl", None, (None, "r1"))
    read = errors.JobNotFound(*json.loads(json.dumps(error.args)))
    assert (read.runs, str(read)) == ((None, "r1"), str(error))
    assert errors.JobNotFound("etl").runs == ()
    assert errors.JobNotFound("etl").args == ("etl", None)


def test_errors_expose_their_arguments_as_attributes() -> None:
    late = errors.SynchronizeTimeout("etl", "scan", 10, "1-3,5", [STATE], 2.5)
    assert (late.states, late.missing, late.timeout) == ([STATE], "1-3,5", 2.5)
    failed = errors.SynchronizeFailed("etl", "scan", 10, STATE)
    assert failed.state is STATE
    planned, eager = errors.SubmitFailed("etl", 3, "no"), errors.SubmitFailed("etl", 3, "no", 3)
    assert (planned.task_index, planned.why, planned.published, planned.job) == (3, "no", 0, None)
    assert (eager.task_index, eager.why, eager.published, eager.job) == (3, "no", 3, None)


def test_pickling_submit_failed_drops_its_job() -> None:
    error = errors.SubmitFailed("etl", 3, "no", 3)
    error.job = threading.Lock()  # cannot be pickled, like the locks and connections of a job's store
    unpickled = pickle.loads(pickle.dumps(error))
    assert (unpickled.published, unpickled.job, str(unpickled)) == (3, None, str(error))


def test_a_long_list_of_rows_is_shortened_in_the_message_only() -> None:
    missing = ",".join(map(str, range(1_000_000, 1_100_000, 2)))
    late = errors.SynchronizeTimeout("etl", "scan", 10, missing, [], 2.5)
    assert late.missing == missing
    assert "still waiting for task 1000000,1000002," in str(late)
    assert ",1000046,1000048 and more; increase the timeout" in str(late)
