"""One SQLite connection: opening it, creating or migrating the tables, and translating its errors."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable

from celery_statemanager.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.stores.sqlite.schema import is_current, migrate
from celery_statemanager.stores.sqlite.shared import connection_class, prefix_of

PAGE_BYTES = 2_048
"""Half of SQLite's default: a write changes few bytes in each of four or five pages, and a commit logs whole pages."""

CHECKPOINT_PAGES = 4_000
"""Pages in the write-ahead log at which SQLite moves them to the file and synchronises both with the disk."""

WAL_BYTES = 16 * 2**20
"""Bytes to which SQLite truncates the write-ahead log when it starts the log again."""

_OLDEST = (3, 25, 0)
_RETRY_PAUSE = 0.01

_BUSY = r"is locked|locking protocol|schema has changed"
_RULES: tuple[tuple[str, type[StoreError], str], ...] = (
    (
        r"is locked|locking protocol",
        StoreUnavailable,
        "another process held its lock for more than {timeout:g} s; increase the store timeout to wait longer",
    ),
    (r"schema has changed", StoreUnavailable, "another process has upgraded its tables; try again"),
    (r"is full", StoreUnavailable, "free space on its disk"),
    (r"disk I/O error", StoreUnavailable, "check its disk and the system log"),
    (r"unable to open", StoreUnavailable, "check that its directory exists, and the limit of open files"),
    (r"out of memory", StoreUnavailable, "this process or its machine has no memory left"),
    (r"interrupted", StoreUnavailable, "the call was interrupted; repeat it"),
    (r"readonly|permission denied", StoreError, "grant this user write access to the file and its directory"),
    (r"malformed", StoreError, "the file is damaged: restore it, or move it away to start with an empty one"),
    (
        r"not a database|unsupported file format",
        StoreError,
        "another program has overwritten the file: restore it, or move it away",
    ),
    (r"no such (table|column|index)", StoreError, "another program has changed its tables: restore the file"),
    (r"too big|large file support", StoreError, "the file system, or SQLite, does not support a file of this size"),
)
"""Patterns of SQLite's messages, the exception to raise, and what the user can do.

``StoreUnavailable`` is raised for errors that pass, for example when the disk has space again. ``StoreError`` is raised
for errors that need a correction, and for all other messages.
"""


def connect(
    path: str,
    timeout: float,
    *,
    waits: bool = True,
    prefix: str = "",
    version: tuple[int, ...] = sqlite3.sqlite_version_info,
) -> sqlite3.Connection:
    """Open the file and create or migrate its tables where necessary. The caller begins and ends transactions.

    Args:
        waits: whether the connection's statements wait for locks, up to ``timeout`` seconds.
        prefix: of the names of the tables, in a file of another application.
        version: the version of SQLite.

    Raises: sqlite3.Error, StoreError, ConfigurationError.
    """
    if version < _OLDEST:
        raise ConfigurationError(
            f"SQLite {'.'.join(map(str, version))} is too old, 3.25 is required: use a Python built with a newer SQLite"
        )
    connection: sqlite3.Connection = sqlite3.connect(
        path,
        timeout=timeout if waits else 0.0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=connection_class(prefix),
    )
    try:
        _retry_while_busy(lambda: _set_up(connection, path), timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection holds a lock, so that a retry may succeed."""
    return re.search(_BUSY, str(error)) is not None


def is_unusable(error: sqlite3.Error) -> bool:
    """Return whether connections must be opened again.

    SQLite keeps a file open that was replaced, or that it could once open for reading only.
    """
    return re.search(r"readonly|disk I/O error|malformed|not a database|no such", str(error)) is not None


def translate(error: sqlite3.Error, path: str, timeout: float) -> StoreError:
    """Create the store's exception for an error of SQLite; the message says what to do."""
    text = str(error)
    for pattern, kind, hint in _RULES:
        if re.search(pattern, text):
            return kind(f"SQLite store {path}: {text}; {hint.format(timeout=timeout)}")
    return StoreError(f"SQLite store {path}: {text or type(error).__name__}")


def _retry_while_busy(action: Callable[[], None], timeout: float) -> None:
    """Retry while other processes set up or close the file: SQLite does not wait for each of the locks involved."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY_PAUSE)


def _set_up(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    if not is_current(connection, path):
        if not prefix_of(connection):
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # no effect on a file that already has tables
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not is_current(connection, path):
                migrate(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    mode = _write_ahead(connection)
    if mode != "wal" and not prefix_of(connection):
        raise StoreError(
            f"SQLite store {path}: its file system does not support a write-ahead log (journal mode is {mode!r}); "
            "put the file on a local disk"
        )


def _write_ahead(connection: sqlite3.Connection) -> str:
    """Switch the file to a write-ahead log, and return its journal mode.

    While another connection uses a shared file, it stays as it is. A later connection of this store switches it.
    """
    try:
        return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    except sqlite3.OperationalError as error:
        if not (prefix_of(connection) and is_busy(error)):
            raise
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
