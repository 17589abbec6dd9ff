"""Creating the tables of a file, and migrating them from earlier schemas."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

from celery_statemanager.stores.sqlite.location import APPLICATION_ID, SCHEMA, check_identity, check_schema
from celery_statemanager.stores.sqlite.shared import SCRIPT, VERSION_TABLE, prefix_of

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
"""Counts blocked cells in ``not_run``; in schema 3, ``failed`` includes them."""

_TO_5 = (
    "DROP INDEX cell_owned",
    (
        "CREATE INDEX cell_owned ON cell (job, tag, task_index)\n"
        "WHERE owner IS NOT NULL AND (open = 1 OR (began_at <> 0 AND status >= 0 AND status < 2147483647))"
    ),
)

_TO_6 = (
    "ALTER TABLE tag ADD COLUMN rows INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE garbage ADD COLUMN incarnation TEXT",
    (
        "CREATE TABLE block (\n  incarnation TEXT NOT NULL,\n  first INTEGER NOT NULL,\n  data BLOB NOT NULL,\n"
        "  PRIMARY KEY (incarnation, first)\n)"
    ),
    "CREATE TABLE draft (\n  incarnation TEXT PRIMARY KEY,\n  lease_until INTEGER NOT NULL\n) WITHOUT ROWID",
    "CREATE INDEX draft_lease ON draft (lease_until)",
    "CREATE TABLE outbox (\n  job INTEGER PRIMARY KEY,\n  claimed INTEGER NOT NULL,\n  claims TEXT NOT NULL\n)",
)
"""Only jobs that own messages use ``rows``; earlier jobs have none."""


def _copy_claims(db: sqlite3.Connection) -> None:
    """Copy the claims that schema 6 keeps as JSON. SQLite may have no functions for JSON."""
    for job, claims in db.execute("SELECT job, claims FROM outbox_6").fetchall():
        rows = [(job, publisher, *claim) for publisher, claim in json.loads(claims).items()]
        db.executemany("INSERT INTO claim (job, publisher, rows, at, until) VALUES (?, ?, ?, ?, ?)", rows)


_TO_7 = (
    "ALTER TABLE cell ADD COLUMN publication INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE outbox RENAME TO outbox_6",
    "CREATE TABLE outbox (\n  job INTEGER PRIMARY KEY,\n  claimed INTEGER NOT NULL\n)",
    "INSERT INTO outbox (job, claimed) SELECT job, claimed FROM outbox_6",
    (
        "CREATE TABLE claim (\n  job INTEGER NOT NULL,\n  publisher TEXT NOT NULL,\n  rows TEXT NOT NULL,\n"
        "  at INTEGER NOT NULL,\n  until INTEGER NOT NULL,\n  PRIMARY KEY (job, publisher)\n) WITHOUT ROWID"
    ),
    _copy_claims,
    "DROP TABLE outbox_6",
    (
        "CREATE TABLE returned (\n  job INTEGER NOT NULL,\n  begun INTEGER NOT NULL,\n  low INTEGER NOT NULL,\n"
        "  high INTEGER NOT NULL,\n  PRIMARY KEY (job, begun, low)\n) WITHOUT ROWID"
    ),
    (
        "CREATE TABLE value (\n  job INTEGER NOT NULL,\n  task_index INTEGER NOT NULL,\n  value TEXT NOT NULL,\n"
        "  PRIMARY KEY (job, task_index)\n)"
    ),
)

_TO_8 = (
    "ALTER TABLE cell ADD COLUMN generation INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE cell ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tag RENAME COLUMN failed_final TO failures",
)
"""Cells that had failed before count in the tallies only. Nothing compares the two."""

_TO_9 = (
    "ALTER TABLE tag ADD COLUMN failed_rows INTEGER NOT NULL DEFAULT 0",
    """
    UPDATE tag SET failed_rows = (
      SELECT count(*) FROM cell c INDEXED BY cell_status
      WHERE c.job = tag.job AND c.tag = tag.id AND c.status < 0 AND c.status <> 2147483647 AND c.status <> -7
        AND c.open = 0 AND c.blocked_by IS NULL
    )
    WHERE failed > 0
    """,
)

_TO_10 = (
    "ALTER TABLE cell ADD COLUMN stall_after INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE cell ADD COLUMN stalled_since INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE cell ADD COLUMN stands_in TEXT",
    "ALTER TABLE tag ADD COLUMN stalled INTEGER NOT NULL DEFAULT 0",
)

_Step = str | Callable[[sqlite3.Connection], None]
_MIGRATIONS: dict[int, tuple[_Step, ...]] = dict(
    enumerate((_TO_2, _TO_3, _TO_4, _TO_5, _TO_6, _TO_7, _TO_8, _TO_9, _TO_10), start=2)
)
"""The statements and functions that lead to each schema of the file from the previous one."""


def is_current(db: sqlite3.Connection, path: str) -> bool:
    """Return whether the tables exist in the schema of this release. Raises: ConfigurationError."""
    if prefix_of(db):
        version = _shared_version(db)
        check_schema(path, version or 0)
        return version == SCHEMA
    # Tables are counted first: another process may set up the file between the reads, and a file that has tables
    # without our application id belongs to another application.
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID and version == SCHEMA:
        return True
    check_identity(path, application, version, empty=not tables)
    return False


def migrate(db: sqlite3.Connection) -> None:
    """Create the tables, or migrate them to ``SCHEMA``, inside the caller's transaction."""
    version = _shared_version(db) if prefix_of(db) else _own_version(db)
    if version is None:
        for statement in SCRIPT.split(";\n"):
            db.execute(statement)
        version = SCHEMA
    for later in range(version + 1, SCHEMA + 1):
        for step in _MIGRATIONS[later]:
            if isinstance(step, str):
                db.execute(step)
            else:
                step(db)
    if prefix_of(db):
        db.execute(f"CREATE TABLE IF NOT EXISTS {prefix_of(db)}{VERSION_TABLE} (version INTEGER NOT NULL)")
        db.execute("DELETE FROM schema")
        db.execute("INSERT INTO schema (version) VALUES (?)", (SCHEMA,))
    else:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")


def _own_version(db: sqlite3.Connection) -> int | None:
    """Return the schema of a file of this store; None if it is empty."""
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return None
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _shared_version(db: sqlite3.Connection) -> int | None:
    """Return the schema of the tables in a file of another application; None if there are none."""
    table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if db.execute(table, (prefix_of(db) + VERSION_TABLE,)).fetchone() is None:
        return None
    found = db.execute("SELECT version FROM schema").fetchone()
    return None if found is None else int(found[0])
