"""One connection, with a limit of the time of each call."""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Sequence
from typing import Any

import psycopg

from celery_statemanager.stores.postgres.errors import CallTimeout

_INTERVAL = 0.1
"""Seconds after which psycopg checks whether a call has timed out."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection in autocommit mode whose calls end at ``deadline``, a time of ``time.monotonic``.

    Attributes:
        is_session: whether the connection keeps its server process. Behind PgBouncer in transaction mode, it does not.
        is_standby: whether the server refused writes when the connection was opened.
        tables: the number of the table of jobs; it distinguishes schemas of one database.
        server: distinguishes the server and the tables from those of a copy that was restored, or promoted.
    """

    deadline = float("inf")
    is_session = True
    is_standby = False
    tables = server = 0

    def wait(self, gen: Any, interval: float | None = _INTERVAL, timeout: float | None = None) -> Any:
        """Run a generator of psycopg. Raises: CallTimeout."""
        return super().wait(_until(self.deadline, gen), _INTERVAL)

    def run_script(self, *statements: tuple[str, Sequence[Any]]) -> list[list[tuple[Any, ...]]]:
        """Send statements together, with their values in the text; return the rows of each statement.

        Without an open transaction, they are one.
        """
        cursor = psycopg.ClientCursor(self)
        cursor.execute("; ".join(cursor.mogrify(text, values) if values else text for text, values in statements))
        found = []
        while True:
            found.append(cursor.fetchall() if cursor.description else [])
            if not cursor.nextset():
                return found

    def is_clean(self) -> bool:
        """Return whether an idle connection can be used: the server has neither closed it nor sent anything."""
        if self.closed:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)


def _until(deadline: float, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Pass a generator through and raise when it waits at the deadline."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                raise CallTimeout
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value
