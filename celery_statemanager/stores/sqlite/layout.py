"""The layout of the file: made where there is none, brought up to date where an older release made it."""

from __future__ import annotations

import sqlite3
from importlib import resources

from celery_statemanager.stores.sqlite.location import APPLICATION_ID, SCHEMA

_TO_2 = (
    "ALTER TABLE job ADD COLUMN tombstoned INTEGER NOT NULL DEFAULT 0",
    """UPDATE job SET tombstoned = 1 WHERE control NOT LIKE '%"tombstonedAt":null}'""",
    "CREATE INDEX job_tombstoned ON job (tombstoned) WHERE tombstoned = 1",
)
_TO_3 = (
    "DROP INDEX cell_status",
    "CREATE INDEX cell_status ON cell (job, tag, status, task_index) WHERE status <> 2147483647",
)

_LATER = {2: _TO_2, 3: _TO_3}
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
