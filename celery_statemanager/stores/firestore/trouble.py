"""What may go wrong between here and Firestore, and what it is called here."""

from __future__ import annotations

from google.api_core import exceptions
from google.auth import exceptions as auth_errors
from requests import exceptions as http_errors

from celery_statemanager.errors import StoreError, StoreUnavailable
from celery_statemanager.stores.firestore.address import Address


class Transient(StoreUnavailable):
    """A call failed in a way that may pass; whether it was done is not known."""


class Refused(StoreError):
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
FINAL: tuple[type[Exception], ...] = (exceptions.GoogleAPIError, auth_errors.GoogleAuthError)


def translated(error: Exception, address: Address) -> StoreError:
    """Give this package's word for a client's error."""
    said = getattr(error, "message", None) or str(error)
    if isinstance(error, TRANSIENT):
        return Transient(f"{address} did not answer: {said}")
    if isinstance(error, exceptions.AlreadyExists):
        return Refused(f"{address}: {said}")
    if isinstance(error, (exceptions.NotFound, exceptions.FailedPrecondition)) and not _is_setup(said):
        return Refused(f"{address}: {said}")
    return StoreError(f"{address} refused: {said}{_mend(error)}")


def _is_setup(said: str) -> bool:
    """Whether a database or an index is missing, rather than a document."""
    lowered = said.lower()
    return "requires an index" in lowered or ("database" in lowered and "does not exist" in lowered)


def _mend(error: Exception) -> str:
    if isinstance(error, (exceptions.Forbidden, exceptions.Unauthorized, auth_errors.GoogleAuthError)):
        return "; check the project's name and that the account holds roles/datastore.user"
    if isinstance(error, exceptions.NotFound):
        return "; create the database: make firestore-init PROJECT_ID=… REGION=…"
    if isinstance(error, exceptions.FailedPrecondition):
        return "; create the indexes: make firestore-indexes PROJECT_ID=…"
    return ""
