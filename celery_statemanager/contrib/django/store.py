"""``django://alias``: a store in a database of Django, with connections of its own."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import unquote

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections

from celery_statemanager.contrib.django.transactions import connection_of, in_transaction
from celery_statemanager.errors import ConfigurationError, StoreUnavailable
from celery_statemanager.stores import open_store
from celery_statemanager.stores.capabilities import CallerTransaction, FullStore, JobCreator
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.location import locate
from celery_statemanager.stores.wrapped import WrappedStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

PREFIX = "celery_statemanager_"
"""The prefix of the tables, which is the label of the Django app."""

PATIENCE = 0.5
"""Seconds for which a thread with an open transaction waits for the lock of SQLite, which it may hold itself."""

ENGINES = ("sqlite", "postgresql")


class DatabaseStore(Protocol):
    """The methods of this package's stores in a database of Django, in addition to the store contract."""

    def on_connection(self, connection: Any) -> JobCreator:
        """Return what creates jobs in a transaction that a connection of the caller has open."""


class DjangoStore(WrappedStore):
    """A store on the database of an alias.

    The settings of the alias are read at each call, so that a test database is used as soon as it exists.
    """

    def __init__(self, alias: str = DEFAULT_DB_ALIAS, *, timeout: float = 5.0, **options: Any) -> None:
        self.alias = alias
        self._timeout = timeout
        self._options = options
        self._lock = threading.Lock()
        self._opened: tuple[tuple[Any, ...], FullStore] | None = None
        self._joined: object = None
        fork_aware(self)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> DjangoStore:
        alias = url.partition("://")[2].rstrip("/")
        if not re.fullmatch(r"[^/?#]+", alias):
            raise ConfigurationError(
                f"{url} must name one alias of DATABASES in your settings, such as django://default"
            )
        store = cls(unquote(alias), timeout=timeout, **options)
        store.inner  # noqa: B018 - its creation checks the database and the options, without connecting
        return store

    @property
    def inner(self) -> FullStore:  # type: ignore[override] # assigned by the base class
        """The store on the database that the settings of the alias name now. Raises: ConfigurationError."""
        wanted = _identity(settings_of(self.alias))
        opened = self._opened
        if opened is None or opened[0] != wanted:
            with self._lock:
                opened = self._opened
                if opened is None or opened[0] != wanted:
                    if opened is not None:
                        opened[1].close()
                    opened = self._opened = wanted, self._open()
        return opened[1]

    def _open(self) -> FullStore:
        if apps.ready and not apps.is_installed(__package__):
            logger.warning(
                "%s is not in INSTALLED_APPS: the tables of states are created when they are used, not by a migration",
                __package__,
            )
        check_engine(self.alias)
        if connections[self.alias].vendor == "postgresql":
            given = {**postgres_parameters(settings_of(self.alias)), **self._options}
            return open_store("postgresql://", timeout=self._timeout, prefix=PREFIX, **given)
        path = sqlite_path(self.alias)
        return SQLiteStore(path, timeout=self._timeout, prefix=PREFIX, patience=self._patience, **self._options)

    def calling(self, method: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except StoreUnavailable as error:
            if self._in_transaction():
                raise StoreUnavailable(
                    f"{error}; this thread has an open transaction on {self.alias!r}, which may hold the lock until it "
                    f"ends: submit with using={self.alias!r}, and change jobs after the transaction"
                ) from error
            raise

    def join(self, transaction: CallerTransaction) -> JobCreator | None:
        if transaction.database != self.alias:
            return None
        store = self.inner
        if connections[self.alias].vendor == "postgresql" and store is not self._joined:
            store.create_tables()  # in SQLite, only the caller's connection can create them now
            self._joined = store
        return cast("DatabaseStore", store).on_connection(transaction.connection)

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened[1].close()

    def before_fork(self) -> None:
        """Wait until no other thread opens the store, so that a child can use it."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Allow threads to open the store again."""
        self._lock.release()

    def _patience(self) -> float:
        return min(PATIENCE, self._timeout) if self._in_transaction() else self._timeout

    def _in_transaction(self) -> bool:
        """Return whether this thread may hold the lock of the database."""
        connection = connections[self.alias]
        return bool(connection.vendor == "sqlite") and in_transaction(connection)

    def __repr__(self) -> str:
        return f"<DjangoStore {self.alias}>"


def settings_of(alias: str) -> Mapping[str, Any]:
    """Return the settings of an alias, as Django or a test runner has set them. Raises: ConfigurationError."""
    try:
        return cast("Mapping[str, Any]", connection_of(alias).settings_dict)
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"cannot use django://{alias}: {error}") from error


def _identity(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a database."""
    return tuple(settings.get(name) for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT"))


def check_engine(alias: str) -> None:
    """Check that states can be kept in the database of an alias. Raises: ConfigurationError."""
    settings_of(alias)
    vendor = connections[alias].vendor
    if vendor not in ENGINES:
        raise ConfigurationError(
            f"cannot use django://{alias}: its database is {vendor}, and states are kept in SQLite or PostgreSQL; name "
            "another alias, or a store such as redis://"
        )


def sqlite_path(alias: str) -> str:
    """Return the path of the file of an alias on SQLite. Raises: ConfigurationError."""
    name = str(settings_of(alias)["NAME"])
    if ":memory:" in name or "mode=memory" in name:
        raise ConfigurationError(
            f"cannot use django://{alias}: its database is in memory ({name}), which other connections cannot open. In "
            "tests, set statemanager_store_url to 'memory://', or name a file in the setting TEST of the database: "
            "{'NAME': 'test.sqlite3'}"
        )
    path = unquote(name.removeprefix("file:").partition("?")[0]) if name.startswith("file:") else name
    return locate(f"sqlite:///{path}", is_shared=True)


OF_DJANGO = frozenset({"assume_role", "isolation_level", "pool", "server_side_binding"})
"""Options of a PostgreSQL database that only Django uses. The others are parameters of libpq."""


def postgres_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of libpq that the settings of a PostgreSQL database contain."""
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    parameters = {name: str(settings[key]) for name, key in names.items() if settings.get(key)}
    given = dict(settings.get("OPTIONS") or {})
    parameters |= {name: value for name, value in given.items() if name not in OF_DJANGO}
    if given.get("assume_role"):
        parameters["options"] = f"{parameters.get('options', '')} -c role={given['assume_role']}".strip()
    return parameters
