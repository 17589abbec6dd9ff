"""Readers that are killed continue in another process, checked cell by cell (rule R24)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import running_redis

from celery_statemanager import open_store
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid

ROWS, WRITES = 8, 60

READER = """
import json, sys
from celery_statemanager import Manager, open_store

url, cursor = sys.argv[1:]
with open_store(url) as store, Manager.open(store, "job").subscribe(since=cursor or None, until_settled=True) as events:
    for event in events:
        line = [event.state.task_index, event.state.version, event.cursor, event.resync]
        print(json.dumps(line), flush=True)
print("end", flush=True)
"""


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/states.db"
    elif request.param == "postgres":
        yield f"{request.getfixturevalue('postgres_server').url}?schema=resume"
    else:
        with running_redis() as server:
            yield server.url


def write_all(grid: Grid, row: int) -> None:
    for status in range(1, WRITES):
        grid.write("a", row, status)
    grid.write("a", row, FINISHED)


def test_a_killed_reader_continues_in_another_process(url: str) -> None:
    with open_store(url) as store:
        grid = Grid.create(store, ROWS, ("a",))
        grid.write("a", 0, 1)
        writers = [threading.Thread(target=write_all, args=(grid, row)) for row in range(ROWS)]
        newest: dict[int, int] = {}
        cursor, ended, killed = "", False, 0
        while not ended:
            assert killed < 20
            cursor, ended = read_some(url, cursor, newest, writers if killed == 0 else [], at_most=5 * (killed + 1))
            killed += 1
        for writer in writers:
            writer.join(PATIENCE)
        assert killed > 1
        assert newest == {state.task_index: state.version for state in grid.states()}
        assert len(newest) == ROWS


def read_some(
    url: str, cursor: str, newest: dict[int, int], writers: list[threading.Thread], *, at_most: int
) -> tuple[str, bool]:
    """Read in a new process, and kill it after some events. Return the last cursor, and whether the job has settled."""
    command = [sys.executable, "-c", READER, url, cursor]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        for number, line in enumerate(reader.stdout):
            if number == 0:
                for writer in writers:
                    writer.start()
            if line == "end\n":
                return cursor, True
            row, version, cursor, resync = json.loads(line)
            assert not resync
            assert version >= newest.get(row, 0)
            newest[row] = version
            if number + 1 == at_most:
                break
        reader.kill()
    return cursor, False
