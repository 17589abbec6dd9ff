"""What the outbox costs in statements, and which rows of the file it leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_kit import opened, raw

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import ClaimRequest, Flow, Returned, Write
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.testing.kit import Grid, purge

TABLES = ("job", "tag", "cell", "gap", "block", "draft", "outbox", "claim", "returned", "value", "garbage")


def statements(store: SQLiteStore, work: Callable[[], object]) -> list[str]:
    """Return what the statements of a call do, and to which table."""
    seen: list[str] = []
    db = store._pool.write(lambda db: db)
    db.set_trace_callback(seen.append)
    work()
    db.set_trace_callback(None)
    found = [
        re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT)\b.*?(?:FROM |INTO |(?<=UPDATE) )(\w+)", each, re.DOTALL)
        for each in seen
    ]
    return [f"{each[1]} {each[2]}" for each in found if each]


def changes(store: SQLiteStore, work: Callable[[], object]) -> list[str]:
    """Return the statements of a call that change a table."""
    return [each for each in statements(store, work) if not each.startswith("SELECT")]


class TestOutbox:
    @pytest.mark.parametrize("flow", [Flow(), Flow(max_in_flight=None, paused=True)], ids=["plain", "paused"])
    def test_the_end_of_a_cell_uses_no_table_of_the_outbox(self, store: SQLiteStore, flow: Flow) -> None:
        grid = Grid.submitted(store, 3, ("a",))
        for row in (0, 1):
            grid.begin("a", row)
        grid.end("a", 0)
        grid.update(lambda job: replace(job, flow=flow))
        found = statements(store, lambda: grid.end("a", 1, publisher="w"))
        assert found[-3:] == ["UPDATE cell", "UPDATE tag", "SELECT tag"]

    def test_a_claim_writes_only_what_it_changes(self, store: SQLiteStore) -> None:
        grid = Grid.submitted(store, 200, ("a", "b"), published=0)
        for number in range(50):
            store.claim(grid.ref, ClaimRequest(publisher=f"p{number}", limit=2))
        returned = Returned(waiting=IndexSet(range(0, 100, 2)))
        for number in range(50):
            store.claim(grid.ref, ClaimRequest(publisher=f"p{number}", limit=0, returned=returned))
            store.claim(grid.ref, ClaimRequest(publisher=f"q{number}", limit=0))
        with raw(Path(store._path)) as db:
            assert db.execute("SELECT count(*) FROM returned").fetchone() == (50,)
        found = changes(store, lambda: store.claim(grid.ref, ClaimRequest(publisher="x", limit=1)))
        assert found == ["INSERT claim", "DELETE returned"]
        assert changes(store, lambda: store.claim(grid.ref, ClaimRequest(publisher="y", limit=0))) == []

    def test_a_deleted_job_leaves_no_rows(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.submitted(store, 20, ("a", "b"))
        for row in range(0, 20, 3):
            store.write(grid.ref, Write.sent_back("a", row, "never received", attempt=0))
        for row in range(0, 20, 2):
            grid.begin("a", row, takes_over=True)
            grid.end("a", row, publisher=f"w{row}", next_is_due=True, value="x" * 5_000)
        with raw(path) as db:
            counts = {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
            assert (counts["claim"], counts["returned"], counts["value"]) == (10, 3, 10)
            assert store.delete_job(grid.job)
            assert [store.purge(5) for _ in range(2)] == [5, 5]
            purge(store)
            for table in TABLES:
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table

    def test_values_and_returned_rows_are_shared_by_all_processes(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.submitted(store, 3, ("a", "b"))
        grid.begin("a", 0)
        grid.end("a", 0, value="ß\x00" * 100_000)
        store.write(grid.ref, Write.sent_back("a", 1, "never received", attempt=0))
        with opened(path) as other:
            assert other.get_value(grid.ref, 0) == "ß\x00" * 100_000
            assert other.get_outbox(grid.ref).returned == Returned(waiting=IndexSet([1]))
            assert other.get_value(replace(grid.job, incarnation="another").ref, 0) is None
