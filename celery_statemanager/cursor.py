"""The cursors of subscriptions: positions from which any process can continue. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from celery_statemanager.limits import invalid_since
from celery_statemanager.models import State, microseconds_of

ListKey = tuple[int, str, int]
"""The place of a state in a list: its time in microseconds, its tag and its row."""

FIRST: ListKey = (0, "", 0)
"""A place before all states."""

_CURSOR = re.compile(r"([\w-]{0,64}):([\w.-]{1,100})(?:@([0-9]{1,18})\.([0-9]{1,9})\.([\w.~%-]*))?", re.ASCII)


class Cursor(NamedTuple):
    """The parts of ``StateEvent.cursor``.

    Attributes:
        incarnation: that of the job.
        position: the cursor of a watch, up to which all changes were delivered.
        listed: the last delivered state of a list that was read after this position; None if the list was complete.
    """

    incarnation: str
    position: str
    listed: ListKey | None

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse a cursor. Raises: TypeError, ValueError."""
        if not isinstance(text, str):
            raise TypeError(f"since must be the cursor of an event, a string, not {text!r}")
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise invalid_since(text)
        incarnation, position, changed_at, row, tag = match.groups()
        return cls(incarnation, position, None if changed_at is None else (int(changed_at), unquote(tag), int(row)))


def list_key_of(state: State) -> ListKey:
    """Return the place of a state in a list."""
    return microseconds_of(state), state.tag, state.task_index
