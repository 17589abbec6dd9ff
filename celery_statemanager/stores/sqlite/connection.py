"""One SQLite connection: opened, set up, its errors translated."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from importlib import resources

from celery_statemanager.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.stores.sqlite.location import APPLICATION_ID, SCHEMA, check_identity

PAGE_BYTES = 2_048
"""Half of SQLite's own: a write changes few bytes in each of four or five pages, and a commit logs them whole."""

CHECKPOINT_PAGES = 4_000
"""How many pages the write-ahead log takes until they are moved to the file, and both synchronised with the disk."""

WAL_BYTES = 16 * 2**20
"""What is left of the write-ahead log after a reader had kept it from being reset."""

_OLDEST = (3, 25, 0)
_RETRY = 0.01

_MENDS: tuple[tuple[str, type[StoreError], str], ...] = (
    (
        "is locked",
        StoreUnavailable,
        "another process held its lock for more than {timeout:g} s; a larger store timeout waits longer",
    ),
    ("disk is full", StoreUnavailable, "make room on its disk"),
    ("disk I/O error", StoreUnavailable, "look at its disk and the system's log"),
    ("unable to open", StoreUnavailable, "look whether its directory is still there, and at the limit of open files"),
    ("readonly", StoreError, "give this user write access to the file and its directory"),
    ("malformed", StoreError, "the file is damaged: restore it, or move it away and start anew"),
    ("not a database", StoreError, "something else has overwritten the file: restore it, or move it away"),
)


def connect(path: str, timeout: float, *, waits: bool = True) -> sqlite3.Connection:
    """Open the file, made on first use. Transactions are the caller's own affair.

    Args:
        waits: whether its statements wait for locks themselves, up to ``timeout`` seconds.

    Raises: sqlite3.Error, StoreError, ConfigurationError.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise ConfigurationError(
            f"SQLite {sqlite3.sqlite_version} is too old, 3.25 is needed: use a Python built with a newer one"
        )
    connection = sqlite3.connect(
        path, timeout=timeout if waits else 0.0, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        _patiently(lambda: _set_up(connection, path), timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds a lock: trying again may help."""
    return "is locked" in str(error)


def translated(error: sqlite3.Error, path: str, timeout: float) -> StoreError:
    """Give SQLite's error as ours, with the mend."""
    text = str(error)
    for part, kind, mend in _MENDS:
        if part in text:
            return kind(f"SQLite store {path}: {text}; {mend.format(timeout=timeout)}")
    return StoreError(f"SQLite store {path}: {text or type(error).__name__}")


def _patiently(action: Callable[[], None], timeout: float) -> None:
    """Try again while others set the file up or close it: SQLite itself does not wait for every lock of theirs."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY)


def _set_up(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    if not _is_ours(connection, path):
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file to be made; another keeps its own
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not _is_ours(connection, path):
                bring_up_to_date(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"SQLite store {path}: no write-ahead log is possible there (journal mode {mode!r})")


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    # tables first: another process may set the file up between these looks; tables without our mark are a stranger's
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID and version == SCHEMA:
        return True
    check_identity(path, application, version, empty=not tables)
    return False


_TO_2 = (
    "ALTER TABLE job ADD COLUMN tombstoned INTEGER NOT NULL DEFAULT 0",
    """UPDATE job SET tombstoned = 1 WHERE control NOT LIKE '%"tombstonedAt":null}'""",
    "CREATE INDEX job_tombstoned ON job (tombstoned) WHERE tombstoned = 1",
)
_TO_3 = (
    "DROP INDEX cell_status",
    "CREATE INDEX cell_status ON cell (job, tag, status, task_index) WHERE status <> 2147483647",
)

_TO_4 = (
    "ALTER TABLE tag ADD COLUMN not_run INTEGER NOT NULL DEFAULT 0",
    """
    UPDATE tag SET not_run = (
      SELECT count(*) FROM cell c INDEXED BY cell_status
      WHERE c.job = tag.job AND c.tag = tag.id AND c.status < 0 AND c.status <> 2147483647 AND c.open = 0
        AND c.blocked_by IS NOT NULL
    )
    WHERE failed > 0
    """,
    "UPDATE tag SET failed = failed - not_run WHERE not_run > 0",
    "ALTER TABLE tag RENAME COLUMN alarms TO failed_final",
)
"""Blocked cells are counted apart: ``failed`` includes them in the layout before."""

_LATER = {2: _TO_2, 3: _TO_3, 4: _TO_4}
"""The statements that lead to each layout from the one before."""


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Make the newest layout of an empty file or of an older layout, inside the caller's transaction."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        _create(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        version = SCHEMA
    for later in range(version + 1, SCHEMA + 1):
        for statement in _LATER[later]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def _create(db: sqlite3.Connection) -> None:
    script = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        db.execute(statement)
