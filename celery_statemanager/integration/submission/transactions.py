"""The transaction of a caller in which a job is submitted: ``submit(using=alias)``."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Protocol

from celery_statemanager.errors import ConfigurationError, JobNotCommitted
from celery_statemanager.limits import short_repr
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.capabilities import CallerTransaction

logger = logging.getLogger(__name__)

_PROVIDER = "celery_statemanager.contrib.django.transactions"


class OpenTransaction(Protocol):
    """A transaction that the current thread has begun."""

    @property
    def database(self) -> str:
        """The alias of the database."""

    @property
    def caller(self) -> CallerTransaction:
        """What a store needs to join the transaction."""

    @property
    def is_open(self) -> bool:
        """Whether the connection of the transaction has a transaction open. Any thread may ask."""

    def savepoint(self) -> AbstractContextManager[object]:
        """Return a block that undoes its changes if it raises, without ending the transaction."""

    def on_commit(self, action: Callable[[], object], *, robust: bool) -> None:
        """Call ``action`` after the commit; never if the transaction, or a savepoint around this call, is rolled back.

        Args:
            robust: whether an error of the action is logged, instead of raised where the transaction is committed.
        """


def open_transaction(using: str) -> OpenTransaction | None:
    """Return the transaction that this thread has open on a database; None if it has none.

    Args:
        using: the alias of the database in Django.

    Raises: ConfigurationError – Django is not installed, or has no such database; TypeError.
    """
    if not isinstance(using, str):
        raise TypeError(f"using must be the alias of a database of Django, not {short_repr(using)}")
    try:
        provider = importlib.import_module(_PROVIDER)  # of a higher layer, which few processes need
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "django":
            raise
        raise ConfigurationError(
            "submit(using=…) needs Django: pip install 'celery-statemanager[django]', or call submit without it"
        ) from error
    found: OpenTransaction | None = provider.open_transaction(using)
    return found


@lru_cache(maxsize=1_000)
def warn_of_deferral(store: str, database: str) -> None:
    """Log once that a store cannot join the transactions of a database."""
    logger.warning(
        "%s does not keep its data in the database %r: submit(using=%r) creates jobs after the commit, and a process "
        "that dies between the two creates none; set statemanager_store_url to django://%s to avoid that",
        store,
        database,
        database,
        database,
    )


class Pending:
    """The state of a job whose submission waits for the commit of a transaction."""

    def __init__(self, transaction: OpenTransaction) -> None:
        self._transaction = transaction
        self._record: JobRecord | None = None

    def created(self, record: JobRecord) -> None:
        """Set the record of the job. It exists from now on."""
        self._record = record

    def committed(self, submitted: JobRecord) -> JobRecord:
        """Return the record of the job. After a rollback, this is the submitted one, which no store contains.

        Raises: JobNotCommitted – the transaction is open.
        """
        if self._record is None and self._transaction.is_open:
            raise JobNotCommitted(*submitted.key, self._transaction.database)
        return self._record or submitted
