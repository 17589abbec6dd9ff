"""What may go wrong between here and Firestore, and what it is called here."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from google.api_core import exceptions
from google.auth import exceptions as auth_errors
from requests import exceptions as http_errors

from celery_statemanager.errors import StoreError, StoreUnavailable
from celery_statemanager.stores.firestore.address import EMULATOR_VARIABLE, Address, emulator


class Transient(StoreUnavailable):
    """A call failed in a way that may pass; whether it was done is not known."""


class PreconditionFailed(StoreError):
    """A precondition of a commit did not hold; nothing of it was done, unless an earlier try of it was."""


TRANSIENT: tuple[type[Exception], ...] = (
    exceptions.ServerError,
    exceptions.RetryError,
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.TooManyRequests,
    auth_errors.TransportError,
    http_errors.ConnectionError,
    http_errors.Timeout,
)
REFUSED: tuple[type[Exception], ...] = (exceptions.AlreadyExists, exceptions.NotFound, exceptions.FailedPrecondition)
_NOT_ALLOWED = (exceptions.Forbidden, exceptions.Unauthorized, auth_errors.GoogleAuthError)
FINAL: tuple[type[Exception], ...] = (exceptions.GoogleAPIError, auth_errors.GoogleAuthError)


_CREATE = "make firestore-init PROJECT_ID=… REGION=…"
_SETUP = (
    (r"requires an index", "create the indexes: make firestore-indexes PROJECT_ID=…"),
    (r"the database \S+ does not exist", f"create the database: {_CREATE}"),
    (r"datastore mode", "use a database in native mode: firestore://PROJECT?database=ID"),
    (r"api has not been used", f"enable it: {_CREATE}"),
)
"""What the service says where a project is not set up, rather than a document not as was thought; and the mend."""


def translated(error: Exception, address: Address) -> StoreError:
    """Give this package's word for a client's error."""
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    if isinstance(error, TRANSIENT):
        return Transient(f"{address} did not answer{_of_emulator()}: {said}")
    mend = next((mend for words, mend in _SETUP if re.search(words, said, re.IGNORECASE)), None)
    if isinstance(error, REFUSED) and mend is None:
        return PreconditionFailed(f"{address}: {said}")
    if isinstance(error, _NOT_ALLOWED) and mend is None:
        mend = "check the project's name and that the account holds roles/datastore.user"
    return StoreError(f"{address} refused: {said}{f'; {mend}' if mend else ''}")


def _of_emulator() -> str:
    host = emulator()
    return f" (is the emulator at {host} running? {EMULATOR_VARIABLE} names it)" if host else ""


FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5
SHORTEST_CALL = 0.05

T = TypeVar("T")


class Deadline:
    """Counts down from the making; each pause is about twice the one before."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = FIRST_PAUSE

    def for_a_call(self) -> float:
        """Give the seconds that the next call may take."""
        return max(self._end - time.monotonic(), SHORTEST_CALL)

    def pause(self, error: StoreUnavailable) -> None:
        """Wait before the next try. Raises: ``error``, when time is up."""
        wait = self._pause * random.uniform(0.5, 1.0)
        if time.monotonic() + wait >= self._end:
            raise StoreUnavailable(f"{error} (gave up after {self._timeout:g} s)") from error.__cause__
        time.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def retry(self, call: Callable[[], T]) -> T:
        """Make a call that may be repeated until it is answered. Raises: StoreUnavailable, StoreError."""
        while True:
            try:
                return call()
            except Transient as error:
                self.pause(error)
