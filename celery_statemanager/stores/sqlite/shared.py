"""Tables in the file of another application. A prefix distinguishes their names from those of its tables.

The statements of this store name tables and indexes without the prefix. The connection to a shared file adds it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from functools import lru_cache, partial
from importlib import resources
from typing import Any

SCRIPT = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
"""The statements that create the tables of an empty file."""

VERSION_TABLE = "schema"
"""The table with the number of the schema in a shared file, whose header belongs to the other application."""

_NAMES = [*re.findall(r"^CREATE (?:TABLE|INDEX|UNIQUE INDEX) (\w+)", SCRIPT, re.MULTILINE), VERSION_TABLE]
_NAMED = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|INDEX|INDEXED BY|ON|TO)\s+(?=(?:{'|'.join(_NAMES)})\b)")


@lru_cache(maxsize=1_000)
def prefixed(statement: str, prefix: str) -> str:
    """Return a statement with the prefix before each name of a table or an index."""
    return _NAMED.sub(lambda match: match[0] + prefix, statement)


class PrefixedConnection(sqlite3.Connection):
    """A connection to a shared file."""

    prefix = ""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return super().execute(prefixed(sql, self.prefix), parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return super().executemany(prefixed(sql, self.prefix), parameters)


class BorrowedConnection:
    """The connection of a caller to a shared file. The caller begins and ends its transactions."""

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._connection = connection
        self.prefix = prefix

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement of this store."""
        return self._connection.execute(prefixed(sql, self.prefix), parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute a statement of this store with each of the parameters."""
        return self._connection.executemany(prefixed(sql, self.prefix), parameters)


def connection_class(prefix: str) -> Any:
    """Return the argument ``factory`` of ``sqlite3.connect``."""
    return partial(_prefixed_connection, prefix) if prefix else sqlite3.Connection


def _prefixed_connection(prefix: str, *args: Any, **options: Any) -> PrefixedConnection:
    connection = PrefixedConnection(*args, **options)
    connection.prefix = prefix
    return connection


def prefix_of(db: sqlite3.Connection) -> str:
    """Return the prefix that a connection adds."""
    return getattr(db, "prefix", "")
