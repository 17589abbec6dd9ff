"""The status and the message of a cell, for exceptions as Celery reports them."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import Reject, Retry
from celery.utils.serialization import get_pickleable_exception

from celery_statemanager import StateError, Status
from celery_statemanager.integration.task import outcomes


class TwoArguments(ValueError):
    """An exception that pickle cannot restore: Celery reports a ``ValueError`` in its place."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Worded(Exception):
    """An exception that Celery reports in a wrapper."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Wordless(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


class Quota(StateError):
    def __init__(self, user: str) -> None:
        super().__init__(-7, f"quota of {user}")


class Codeless(StateError):
    def __init__(self) -> None:
        Exception.__init__(self, "left out")


class Positive(StateError):
    code = 5

    def __init__(self) -> None:
        Exception.__init__(self, "computed")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("broken"), Status.FAILED, "ValueError: broken"),
        (TwoArguments("broken", 7), Status.FAILED, "TwoArguments: broken"),
        (Worded("broken", 7), Status.FAILED, "Worded: code 7"),
        (Wordless("broken", 7), Status.FAILED, "Wordless: broken, 7"),
        (Quota("ann"), -7, "quota of ann"),
        (StateError(-8, None), -8, ""),  # type: ignore[arg-type]
        (StateError(-8, b"\xff"), -8, "b'\\xff'"),  # type: ignore[arg-type]
        (Codeless(), Status.FAILED, "Codeless: left out"),
        (Positive(), Status.FAILED, "Positive: computed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_names_the_exception_that_was_raised(error: Exception, status: int, message: str) -> None:
    reported = get_pickleable_exception(error)
    original = outcomes.original(reported, error)
    assert outcomes.failure(original) == (status, message)
    assert outcomes.sets_status(original) is isinstance(error, StateError)


def test_an_unrelated_exception_that_is_being_handled_is_ignored() -> None:
    reported = ValueError("broken")
    assert outcomes.original(reported, KeyError("earlier")) is reported
    assert outcomes.original(reported, None) is reported


class Undecided:
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


@pytest.mark.parametrize(
    ("reject", "message", "requeue"),
    [
        (Reject("unwanted"), "rejected: unwanted", False),
        (Reject(), "rejected", False),
        (Reject(ValueError("broken"), requeue=True), "rejected: broken", True),
        (Reject("unwanted", requeue=Undecided()), "rejected: unwanted", False),
        (Reject.__new__(Reject), "rejected", False),
    ],
    ids=range(5),
)
def test_a_rejection_is_described(reject: Reject, message: str, requeue: bool) -> None:
    assert outcomes.rejection(reject, not_requeued=False) == message
    assert outcomes.asks_for_requeue(reject) is requeue


def test_a_retry_is_described_with_its_cause() -> None:
    assert outcomes.retry(Retry(exc=ValueError("broken")), 0, 3) == "retry 1 of 3: ValueError: broken"
    assert outcomes.retry(Retry("later"), 1, None) == "retry 2"
    assert outcomes.retry(object(), 0, object()).startswith("retry 1 of <object object")  # type: ignore[arg-type]
