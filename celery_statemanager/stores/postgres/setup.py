"""Opening a connection: the check of the server, and the creation of the tables."""

from __future__ import annotations

from typing import Any

from psycopg.types.numeric import Int8Dumper

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.postgres.address import PostgresAddress
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.schema import UPGRADES, VERSION, create_statements

OLDEST = 130_000

_SERVER = """
SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), pg_backend_pid(),
  pg_is_in_recovery(), current_setting('default_transaction_isolation'), to_regclass(%s)::oid::bigint
"""
_EXISTS = "SELECT true FROM pg_tables WHERE schemaname = coalesce(%s, current_schema()) AND tablename = %s"
"""Unlike ``to_regclass``, sees what another process has committed since the transaction began."""

_TABLES = "SELECT to_regclass(%s)::oid::bigint"
_IDENTITY = """
SELECT hashtextextended(
  (SELECT system_identifier FROM pg_control_system()) || ' ' || %s || ' ' ||
  extract(epoch FROM pg_postmaster_start_time()) || ' ' ||
  CASE WHEN pg_is_in_recovery()
  THEN (SELECT timeline_id FROM pg_control_checkpoint())::text ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
  0) & 2147483647
"""
_ISOLATION = "read committed"
"""A step that has waited for a lock must see what the previous holder has committed."""

_SESSION = (
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; "
    f"SET default_transaction_isolation = '{_ISOLATION}'"
)
"""Makes plans use the indexes and their order, because a plan for a small table is also used after it has grown."""


def connect(address: PostgresAddress, names: Names, deadline: float) -> Connection:
    """Open a connection; create the tables if there are none. Raises: psycopg.Error, StoreError."""
    connection = Connection.connect(address.conninfo(), autocommit=True)
    try:
        connection.deadline = deadline
        _prepare(connection, address, names)
        check_version(connection, address, names)
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(address: PostgresAddress, names: Names, deadline: float) -> bool:
    """Create the tables, or upgrade those of an earlier release. Return whether anything was to do.

    Raises: psycopg.Error, StoreError.
    """
    with Connection.connect(address.conninfo(), autocommit=True) as connection:
        connection.deadline = deadline
        created = _prepare(connection, address, names)
        version = _version(connection, names)
        if created or version >= VERSION:
            check_version(connection, address, names)
            return created
        connection.run_script(("BEGIN", ()), _lock(names))
        for later in range(_version(connection, names) + 1, VERSION + 1):
            for statement in UPGRADES[later]:
                connection.execute(names.fill(statement))
        connection.execute(names.fill("UPDATE {meta} SET version = %s"), (VERSION,))
        connection.execute("COMMIT")
        return True


def check_version(connection: Connection, address: PostgresAddress, names: Names) -> None:
    """Check the version of the tables. Raises: StoreError if this release needs another version."""
    version = _version(connection, names)
    if version > VERSION:
        raise StoreError(
            f"{address.shown} has tables of a newer release of celery-statemanager (version {version}, this release "
            f"supports {VERSION}): upgrade celery-statemanager here"
        )
    if version < VERSION:
        raise StoreError(
            f"{address.shown} has tables of version {version}, and this release needs version {VERSION}: run celery "
            "migrate-state --schema as a user who may change the tables"
        )


def create(connection: Connection, names: Names) -> bool:
    """Create the tables unless another process has. Return whether they were created. Raises: psycopg.Error."""
    connection.run_script(("BEGIN", ()), _lock(names))
    if _first(connection, _EXISTS, names.schema, f"{names.prefix}job"):
        connection.execute("ROLLBACK")
        return False
    if names.schema is not None:
        found = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (names.schema,)).fetchone()
        if found is None:
            connection.execute(f'CREATE SCHEMA "{names.schema}"')
    connection.execute(";\n".join((*create_statements(names), "COMMIT")))
    return True


def _prepare(connection: Connection, address: PostgresAddress, names: Names) -> bool:
    """Check the server, create the tables if there are none, and set up the session. Return whether any was created."""
    connection.adapters.register_dumper(int, Int8Dumper)
    job = names.fill("{job}")
    row = connection.execute(_SERVER, (job,)).fetchone()
    assert row is not None
    version, encoding, process, connection.is_standby, isolation, tables = row
    created = False
    _check_server(address, version, encoding)
    connection.is_session = process == connection.info.backend_pid
    if connection.is_session:
        connection.run_script((_SESSION, ()))
    elif isolation == _ISOLATION:
        connection.prepare_threshold = None
    else:
        raise StoreError(
            f"{address.shown} is behind a pooler and has the isolation {isolation}: set default_transaction_isolation "
            f"of the user to '{_ISOLATION}'"
        )
    if tables is None:
        if connection.is_standby:
            raise StoreError(f"{address.shown} is a standby without the tables: create them on the primary")
        created = create(connection, names)
        tables = _first(connection, _TABLES, job)
    connection.tables = tables
    connection.server = _first(connection, _IDENTITY, str(tables))
    return created


def _check_server(address: PostgresAddress, version: int, encoding: str) -> None:
    if version < OLDEST:
        raise StoreError(
            f"{address.shown} is PostgreSQL {version // 10_000}, which is too old: version {OLDEST // 10_000} or newer "
            "is required"
        )
    if encoding != "UTF8":
        raise StoreError(f"{address.shown} has a database in {encoding}: create one with the encoding UTF8")


def _version(connection: Connection, names: Names) -> int:
    return int(_first(connection, names.fill("SELECT version FROM {meta}")) or 0)


def _lock(names: Names) -> tuple[str, tuple[Any, ...]]:
    return "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (names.fill("{job}"),)


def _first(connection: Connection, text: str, *values: Any) -> Any:
    row = connection.execute(text, values).fetchone()
    return row[0] if row else None
