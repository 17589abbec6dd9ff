"""The matrix of outcomes as a table in docs/internals/celery.md. Run this module as a script to write it there."""

from __future__ import annotations

import re
from pathlib import Path

from matrix import POOLS, Outcome
from matrix_rows import OUTCOMES

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "celery.md"
BEGIN, END = "<!-- matrix:begin -->\n", "<!-- matrix:end -->\n"


def table() -> str:
    """Return the matrix in Markdown for the newest Celery, with the differences of Celery before 5.7."""
    lines = [f"| what happens | {' | '.join(POOLS)} | message |", "|---" * (len(POOLS) + 2) + "|"]
    return "\n".join([*lines, *map(_line, OUTCOMES)]) + "\n"


def _line(outcome: Outcome) -> str:
    cells = [_cell(outcome, pool) for pool in POOLS]
    messages = {ends.message: None for ends in outcome.ends.values() if ends.message}
    shown = " or ".join(f"`{_plain(message)}`" for message in messages)
    return f"| {outcome.what} | {' | '.join(cells)} | {shown} |"


def _cell(outcome: Outcome, pool: str) -> str:
    ends, older = outcome.ends.get(pool), outcome.older.get(pool)
    if ends is None:
        return "–"
    return str(ends) if older is None or str(older) == str(ends) else f"{ends} (before 5.7: {older})"


def _plain(pattern: str) -> str:
    """Return a pattern as readable text."""
    return re.sub(r"\((\w+)\|\w+\)", r"\1", pattern).replace(".*", "…")


def shown() -> str:
    """Return the table that the page contains."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def write() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    write()
