"""The statements that change one cell."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from celery_statemanager.stores.sqlite.cells import COLUMNS

NEWEST = "SELECT {} FROM cell INDEXED BY cell_seq WHERE job = {} ORDER BY seq DESC LIMIT 1"
"""Reads a column of a job's newest change."""

_KEY = ("job", "tag", "task_index")
_EXPECTED = ("old version", "old event", "old schema", "revision", "incarnation")
BOUND = {name: f"?{number}" for number, name in enumerate((*_KEY, *COLUMNS, *_EXPECTED), 1)}
_NEXT_SEQ = f"ifnull(({NEWEST.format('seq', BOUND['job'])}), 0) + 1"


class Statement(NamedTuple):
    """A statement, and a function that puts its values in the order of its placeholders."""

    text: str
    ordered: Callable[[Sequence[Any]], tuple[Any, ...]]

    @classmethod
    def parse(cls, text: str) -> Statement:
        """Create a statement from one with numbered placeholders, for which Python 3.12.0 to 3.12.3 warn."""
        order = [int(number) - 1 for number in re.findall(r"\?(\d+)", text)]
        return cls(re.sub(r"\?\d+", "?", text), itemgetter(*order))


INSERT_CELL = Statement.parse(f"""
INSERT INTO cell (seq, {", ".join((*_KEY, *COLUMNS))})
VALUES ({_NEXT_SEQ}, {", ".join(BOUND[name] for name in (*_KEY, *COLUMNS))})
""")


def _update_with(*unchanged: str) -> Statement:
    """Create the statement that sets a cell if the cell and its job are as expected and no later change exists."""
    terms = "".join(f", {name} = {BOUND[name]}" for name in COLUMNS if name not in unchanged)
    return Statement.parse(f"""
    UPDATE cell SET seq = {_NEXT_SEQ}{terms}
    WHERE {" AND ".join(f"{name} = {BOUND[name]}" for name in _KEY)}
      AND version = {BOUND["old version"]} AND event_id = {BOUND["old event"]}
      AND schema_version = {BOUND["old schema"]}
      AND EXISTS (
        SELECT 1 FROM job
        WHERE id = {BOUND["job"]} AND revision = {BOUND["revision"]} AND incarnation = {BOUND["incarnation"]}
      )
      AND ({NEWEST.format("timestamp", BOUND["job"])}) <= {BOUND["timestamp"]}
    """)


UPDATE_CELL = {
    (False, False): _update_with(),
    (True, False): _update_with("status"),
    (False, True): _update_with("open", "owner"),
    (True, True): _update_with("status", "open", "owner"),
}
"""Variants by which columns stay unchanged, because SQLite updates the indexes of every column that is named."""

_FIXED = ("status", "timestamp", "version", "attempt", "open", "owner")
REWRITTEN = [name for name in COLUMNS if name not in _FIXED]
REWRITE_CELL = (
    f"UPDATE cell SET {', '.join(f'{name} = ?' for name in REWRITTEN)} WHERE {' AND '.join(f'{k} = ?' for k in _KEY)}"
)
