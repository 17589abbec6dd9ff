"""The transactions of Django that ``states.submit(using=alias)`` joins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from django.db import connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.stores.capabilities import CallerTransaction


def connection_of(alias: str) -> Any:
    """Return this thread's connection to a database. Raises: ConfigurationError."""
    try:
        return connections[alias]
    except ConnectionDoesNotExist:
        known = ", ".join(map(repr, connections))
        raise ConfigurationError(
            f"Django has no database {alias!r} (known: {known}); name one of DATABASES in your settings"
        ) from None


def in_transaction(connection: Any) -> bool:
    """Return whether a transaction is open, or begins with the next statement."""
    return bool(connection.in_atomic_block) or (connection.connection is not None and not connection.autocommit)


class DjangoTransaction:
    """The transaction that this thread has open on the database of an alias."""

    def __init__(self, alias: str, connection: Any) -> None:
        self.database = alias
        self._connection = connection

    @property
    def caller(self) -> CallerTransaction:
        """The alias, and the connection of the database's own client."""
        with self._connection.cursor() as cursor:
            return CallerTransaction(self.database, cursor.connection)

    @property
    def is_open(self) -> bool:
        """Whether the connection has a transaction open."""
        return in_transaction(self._connection)

    def savepoint(self) -> AbstractContextManager[object]:
        """Return a savepoint in the transaction."""
        block: AbstractContextManager[object] = transaction.atomic(using=self.database)
        return block

    def on_commit(self, action: Callable[[], object], *, robust: bool) -> None:
        """Call ``action`` after the commit."""
        transaction.on_commit(action, using=self.database, robust=robust)


def open_transaction(using: str) -> DjangoTransaction | None:
    """Return the transaction that this thread has open; None if it has none. Raises: ConfigurationError."""
    connection = connection_of(using)
    return DjangoTransaction(using, connection) if in_transaction(connection) else None
