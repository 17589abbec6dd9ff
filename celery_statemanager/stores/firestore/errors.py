"""What may go wrong between here and Firestore, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from google.api_core import exceptions
from google.auth import exceptions as auth_errors
from requests import exceptions as http_errors

from celery_statemanager import deadline
from celery_statemanager.errors import StoreContended, StoreError, StoreUnavailable
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
        return PreconditionFailed(f"{address}: another writer was faster: {said}")
    if isinstance(error, _NOT_ALLOWED) and mend is None:
        mend = "check the project's name and that the account holds roles/datastore.user"
    return StoreError(f"{address} refused: {said}{f'; {mend}' if mend else ''}")


def _of_emulator() -> str:
    host = emulator()
    return f" (is the emulator at {host} running? {EMULATOR_VARIABLE} names it)" if host else ""


T = TypeVar("T")


class Deadline(deadline.Deadline):
    """The time that one call of the store may take."""

    def pause(self, error: StoreError, raised: type[StoreUnavailable] = StoreUnavailable) -> None:
        """Wait before the next try.

        Raises: StoreContended – the time is up, and a precondition failed; StoreUnavailable – anything else did.
        """
        super().pause(error, StoreContended if isinstance(error, PreconditionFailed) else raised)

    def retry(self, call: Callable[[], T]) -> T:
        """Make a call that may be repeated until it is answered. Raises: StoreUnavailable, StoreError."""
        while True:
            try:
                return call()
            except Transient as error:
                self.pause(error)
