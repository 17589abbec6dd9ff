"""PostgreSQL: this release opens tables that each earlier version has created."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from postgres_kit import PostgresServer

from celery_statemanager import open_store
from celery_statemanager.records import JobKey
from celery_statemanager.stores.postgres.schema import VERSION
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

DUMPS = sorted((Path(__file__).parents[1] / "fixtures" / "postgres").glob("version-*.sql"))


def test_each_version_has_a_dump() -> None:
    assert [each.name for each in DUMPS] == [f"version-{version}.sql" for version in range(1, VERSION + 1)]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_the_tables_of_an_earlier_version_are_upgraded_and_used(postgres_server: PostgresServer, dump: Path) -> None:
    schema = dump.stem.replace("-", "_of_")
    text = dump.read_text(encoding="utf-8")
    with postgres_server.connect() as db:
        db.execute(re.sub(r'"?\bstates\b"?(?=[.;])', schema, text))
    with open_store(f"{postgres_server.url}?schema={schema}") as store:
        store.create_tables()
        grid = Grid(store, store.get_job(JobKey("etl")).ref)
        assert grid.cell("scan", 3).payload == '{"progress":{"done":4,"total":10}}'
        assert [(each.ref, each.tag, each.task_index) for each in store.list_open_attempts()] == [(grid.ref, "scan", 1)]
        assert grid.lowest("sum", 2).status == FAILED
        assert store.get_job(JobKey("done")).settled
        assert grid.end("scan", 1).cell.status == FINISHED
        for row, tag in ((0, "sum"), (1, "sum"), (3, "scan"), (3, "sum")):
            grid.run(tag, row)
        assert grid.decided == {"failure", "settled"}
