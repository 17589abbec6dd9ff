"""If a store lacks a new field of cells or tallies, importing the store fails and the error names both."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from celery_statemanager.codec import cell_from_fields, cell_to_fields
from celery_statemanager.records import Begin, Cell, Stall, Write, new_job
from celery_statemanager.stores.fields import EXAMPLES, check_cells
from celery_statemanager.transitions import apply_begin, apply_write

CODECS = {
    "PostgreSQL": "celery_statemanager.stores.postgres.cells",
    "SQLite": "celery_statemanager.stores.sqlite.cells",
    "Redis": "celery_statemanager.stores.redis.cells",
    "Firestore": "celery_statemanager.stores.firestore.documents",
}

NEW_CELL_FIELD = """
from dataclasses import dataclass
from celery_statemanager import records

@dataclass(slots=True)
class Cell(records.Cell):
    priority: int = 0

records.Cell = Cell
"""

NEW_TALLY_FIELD = """
from typing import NamedTuple
from celery_statemanager import records

records.Tally = NamedTuple("Tally", [(name, int) for name in (*records.Tally._fields, "skipped")])
records.Tally.__new__.__defaults__ = (0,) * len(records.Tally._fields)
"""

EXAMPLE = """
from celery_statemanager.stores import fields
fields.EXAMPLES["priority"] = 7
"""


def error_of(*lines: str) -> str:
    """Return the last line that a Python program writes to its standard error."""
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    return run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("store", "codec"), CODECS.items(), ids=CODECS)
def test_a_store_without_a_new_cell_field_cannot_be_imported(store, codec):
    error = error_of(NEW_CELL_FIELD, EXAMPLE, f"import {codec}")
    assert error.startswith(
        f"RuntimeError: the {store} store does not keep Cell.priority: 7 is read as 0; change {codec}"
    )


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_new_cell_field_without_an_example_is_rejected(codec):
    error = error_of(NEW_CELL_FIELD, f"import {codec}")
    assert error == "RuntimeError: stores.fields.EXAMPLES and Cell differ in priority: change EXAMPLES"


@pytest.mark.parametrize(
    ("store", "codec"), {**CODECS, "Firestore": "celery_statemanager.stores.firestore.tallies"}.items(), ids=CODECS
)
def test_a_store_without_a_new_tally_field_cannot_be_imported(store, codec):
    error = error_of(NEW_TALLY_FIELD, f"import {codec}")
    assert error.startswith(f"RuntimeError: the {store} store does not keep Tally.skipped: change {codec}")


def test_a_codec_that_fails_is_named():
    def broken(cell: Cell) -> Cell:
        raise ValueError("too many values to unpack")

    with pytest.raises(RuntimeError, match=r"the X store cannot read .* \(too many values to unpack\): change x.cells"):
        check_cells("X", "x.cells", broken)


def test_the_json_fields_of_a_cell_are_complete():
    check_cells("JSON", "codec", lambda cell: cell_from_fields(json.loads(json.dumps(cell_to_fields(cell)))))


def test_no_example_is_a_default():
    assert {field.name for field in fields(Cell)} == set(EXAMPLES)
    assert [name for name, value in EXAMPLES.items() if getattr(Cell(), name) == value] == []


def test_a_write_and_a_begin_keep_the_fields_that_they_do_not_set():
    """``apply_write`` and ``apply_begin`` list all fields of a cell; a missing one would be reset."""
    job, cell = new_job("job", 1), Cell(**{**EXAMPLES, "blocked_by": None})
    written = apply_write(job, cell, Write.state("a", 0, 50, event_id="new"), 7)
    reset = {"status", "message", "timestamp", "version", "event_id", "stall"}
    assert changed(cell, written) == {"payload", *reset}
    assert written.stall == Stall(cell.stall.after)
    _, begun = apply_begin(job, cell, Begin(tag="a", task_index=0, event_id="new", takes_over=True), 7)
    owned = {"delivery", "owner", "attempt", "began_at"}
    assert changed(cell, begun) == {*reset, *owned}


def changed(old: Cell, new: Cell) -> set[str]:
    return {name for name in EXAMPLES if getattr(old, name) != getattr(new, name)}
