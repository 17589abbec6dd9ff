"""Errors of Firestore calls, their translation to this package's errors, and retries."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from google.api_core import exceptions
from google.auth import exceptions as auth_errors
from requests import exceptions as http_errors

from celery_statemanager import deadline
from celery_statemanager.errors import StoreContended, StoreError, StoreUnavailable
from celery_statemanager.stores.firestore.address import EMULATOR_VARIABLE, FirestoreAddress, emulator

T = TypeVar("T")

CLIENT_ERRORS: tuple[type[Exception], ...] = (
    exceptions.GoogleAPIError,
    auth_errors.GoogleAuthError,
    http_errors.RequestException,
)
"""What a call can raise: the codes of gRPC and HTTP, errors of the credentials, and errors of the connection."""

_LASTING = (exceptions.MethodNotImplemented, exceptions.DataLoss)
_PASSING = (
    exceptions.ServerError,  # UNKNOWN, INTERNAL, UNAVAILABLE, DEADLINE_EXCEEDED; 500, 502, 503, 504
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.TooManyRequests,  # RESOURCE_EXHAUSTED
    exceptions.RetryError,
    auth_errors.TransportError,
    auth_errors.TimeoutError,
    http_errors.ConnectionError,
    http_errors.Timeout,
    http_errors.ChunkedEncodingError,
    http_errors.ContentDecodingError,
    http_errors.RetryError,
)
_PASSING_CODES = {408, 425, *range(500, 600)} - {501, 505, 511}
"""Codes of HTTP for which the client has no class: a proxy may answer with them."""

_CONFLICT = (exceptions.AlreadyExists, exceptions.NotFound, exceptions.FailedPrecondition)
_NOT_ALLOWED = (exceptions.Forbidden, exceptions.Unauthorized, auth_errors.GoogleAuthError)
_CREATE = "make firestore-init PROJECT_ID=… REGION=…"
_SETUP_HINTS = (
    (r"requires an index", "create the indexes: make firestore-indexes PROJECT_ID=…"),
    (r"the database \S+ does not exist", f"create the database: {_CREATE}"),
    (r"datastore mode", "use a database in native mode: firestore://PROJECT?database=ID"),
    (r"certificate_verify_failed", "install the certificate of the proxy or the service"),
    (r"api has not been used", f"enable it: {_CREATE}"),
)
"""Patterns of the service's messages about a project that is not set up, each with a hint.

Such errors have the same codes as a failed precondition of a document.
"""


class Transient(StoreUnavailable):
    """A call failed and may succeed later. It may or may not have been applied."""


class PreconditionFailed(StoreError):
    """A precondition of a commit failed. This try changed nothing, but an earlier try may have been applied."""


class CallDeadline(deadline.Deadline):
    """The time limit of one call of the store."""

    def pause(self, error: StoreError, raised: type[StoreUnavailable] = StoreUnavailable) -> None:
        """Wait before the next try.

        Raises: StoreContended – the time is up after a failed precondition; StoreUnavailable – after another error.
        """
        super().pause(error, StoreContended if isinstance(error, PreconditionFailed) else raised)

    def retry(self, call: Callable[[], T]) -> T:
        """Repeat an idempotent call until it returns. Raises: StoreUnavailable, StoreError."""
        while True:
            try:
                return call()
            except Transient as error:
                self.pause(error)


def passes(error: Exception) -> bool:
    """Return whether a call may succeed later without a correction."""
    if isinstance(error, _LASTING) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if isinstance(error, auth_errors.RefreshError):
        return bool(error.retryable)
    return isinstance(error, _PASSING) or getattr(error, "code", None) in _PASSING_CODES


def translated(error: Exception, address: FirestoreAddress) -> StoreError:
    """Return this package's error for a client's error."""
    reason = getattr(error, "message", None) or str(error) or type(error).__name__
    if passes(error):
        host = emulator()
        hint = f" (is the emulator at {host} running? {EMULATOR_VARIABLE} names it)" if host else ""
        return Transient(f"{address} did not answer{hint}: {reason}")
    hint = next((hint for pattern, hint in _SETUP_HINTS if re.search(pattern, reason, re.IGNORECASE)), "")
    if isinstance(error, _CONFLICT) and not hint:
        return PreconditionFailed(f"{address}: another writer changed the document: {reason}")
    if isinstance(error, _NOT_ALLOWED) and not hint:
        hint = "check the project's name and that the account has the role roles/datastore.user"
    if isinstance(error, exceptions.MethodNotImplemented) and not hint:
        hint = 'a network that does not support gRPC needs transport="rest"'
    return StoreError(f"{address} rejected the call: {reason}{f'; {hint}' if hint else ''}")
