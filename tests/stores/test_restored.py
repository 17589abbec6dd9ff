"""Stores that come back older: restored from a copy, or restarted from a snapshot, while processes use them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_kit import running_postgres
from servers import RedisServer, running_redis

from celery_statemanager import JobNotFound, StateEvent, Store, StoreUnavailable, Subscription, attempts, open_store
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.records import Write
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid

Restore = Callable[[], None]


class Restorable:
    """A store that can be set back to the time of ``save``."""

    def __init__(self, store: Store, save: Restore, restore: Restore) -> None:
        self.store, self.save, self.restore = store, save, restore


def sqlite_in_place(path: Path) -> Iterator[Restorable]:
    """Restore with SQLite's own command, which writes into the file."""
    yield from _sqlite(path, lambda copy: _backup(copy, path / "states.db"))


def sqlite_file(path: Path) -> Iterator[Restorable]:
    """Put a copy in the place of the file, as an administrator does."""

    def replace(copy: Path) -> None:
        for log in ("states.db-wal", "states.db-shm"):
            (path / log).unlink(missing_ok=True)
        Path(shutil.copy(copy, path / "new.db")).replace(path / "states.db")

    yield from _sqlite(path, replace)


def _sqlite(path: Path, restore: Callable[[Path], None]) -> Iterator[Restorable]:
    with closing(open_store(f"sqlite:///{path}/states.db")) as store:
        copy = path / "copy.db"
        yield Restorable(store, lambda: _backup(path / "states.db", copy), lambda: restore(copy))


def _backup(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def redis_restart(path: Path) -> Iterator[Restorable]:
    """Kill the server and start it again from its snapshot."""
    with running_redis() as server, closing(open_store(server.url)) as store:

        def restart() -> None:
            server.stop(kill=True)
            server.start()

        yield Restorable(store, lambda: server.client().save(), restart)


def redis_in_place(path: Path) -> Iterator[Restorable]:
    """Replace the data without closing a connection."""
    with running_redis() as server, closing(open_store(server.url)) as store:
        dumps: dict[bytes, bytes] = {}
        yield Restorable(store, lambda: _dump(server, dumps), lambda: _load(server, dumps))


def _dump(server: RedisServer, dumps: dict[bytes, bytes]) -> None:
    with server.client() as client:
        dumps |= {key: client.dump(key) for key in client.scan_iter()}


def _load(server: RedisServer, dumps: dict[bytes, bytes]) -> None:
    with server.client() as client, client.pipeline() as pipeline:
        pipeline.flushdb()
        for key, value in dumps.items():
            pipeline.restore(key, 0, value)
        pipeline.execute()


def postgres_restart(path: Path) -> Iterator[Restorable]:
    """Put a base backup in the place of the cluster, as an administrator does."""
    with running_postgres() as server, closing(open_store(server.url, timeout=10.0)) as store:
        copy = server.directory / "copy"

        def save() -> None:
            server.run("pg_basebackup", "-D", str(copy), "-d", server.url, "-c", "fast", "-X", "stream")

        def restore() -> None:
            server.stop(kill=True)
            shutil.rmtree(server.data)
            copy.rename(server.data)
            server.start()

        yield Restorable(store, save, restore)


@pytest.fixture(params=[sqlite_in_place, sqlite_file, redis_restart, redis_in_place, postgres_restart])
def restorable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Restorable]:
    yield from request.param(tmp_path)


def read_until(events: Subscription, enough: Callable[[dict[tuple[str, int], State]], bool]) -> None:
    """Read events until the newest state of each cell is as expected."""
    newest: dict[tuple[str, int], State] = {}
    while not enough(newest):
        event = events.get(PATIENCE)
        assert event is not None, newest
        newest[event.state.tag, event.state.task_index] = event.state


def test_a_subscriber_receives_the_states_of_an_older_store(restorable: Restorable) -> None:
    grid = Grid.create(restorable.store, 3)
    grid.begin("a", 0, owner="w")
    restorable.save()
    with Subscription(grid.store, grid.ref, Scope()) as events:
        grid.begin("a", 1)
        grid.end("a", 0)
        read_until(events, lambda newest: ("a", 1) in newest and newest["a", 0].finished)
        restorable.restore()
        lost = Write.lost("a", 0, "its worker is dead", attempt=1)
        assert repeated(lambda: grid.store.write(grid.ref, lost)).cell.version == 2
        read_until(
            events,
            lambda newest: len(newest) == 2 and newest["a", 0].status == Status.LOST and newest["a", 1].version == 0,
        )
        grid.begin("a", 1)
        grid.run("a", 2)
        read_until(events, lambda newest: len(newest) == 2 and newest["a", 1].version == 1 and newest["a", 2].finished)


def repeated(action: Callable[[], Any]) -> Any:
    """Call an action again while the store is unavailable."""
    for _ in range(10):
        try:
            return action()
        except StoreUnavailable:
            continue
    return action()


def test_an_attempt_whose_begin_the_store_has_lost_continues(restorable: Restorable) -> None:
    grid = Grid.create(restorable.store, 2, ("a",))
    grid.begin("a", 1, owner="w")
    restorable.save()
    rows = {row: grid.request("a", row, owner="w") for row in range(2)}
    for begin in rows.values():
        grid.store.begin(grid.ref, begin)
    grid.begin("a", 0, owner="w", supersedes=1)
    restorable.restore()
    for row, number in ((0, 2), (1, 1)):
        write = Write.state("a", row, 40)
        write.attempt = number
        cell = repeated(lambda write=write, row=row: attempts.write(grid.store, grid.ref, write, rows[row])).cell
        assert (cell.attempt, cell.status, cell.open, cell.owner) == (number, 40, True, "w")
        assert grid.end("a", row).cell.status == FINISHED
    assert grid.decided == {"success", "settled"}


def test_a_job_that_the_store_has_lost_is_not_found(restorable: Restorable) -> None:
    Grid.create(restorable.store, job_id="older")
    restorable.save()
    grid = Grid.create(restorable.store, 1, ("a",))
    grid.begin("a", 0)
    with Subscription(grid.store, grid.ref, Scope()) as events:
        assert events.get(PATIENCE)
        restorable.restore()
        with pytest.raises(JobNotFound):
            repeated(lambda: grid.write("a", 0, 5, attempt=1))
        assert events.get(PATIENCE) is None
        assert events.closed


@pytest.mark.parametrize("later_writes", [0, 1, 5])
def test_a_cursor_that_an_older_store_does_not_know_causes_a_resync(restorable: Restorable, later_writes: int) -> None:
    grid = Grid.create(restorable.store, 3)
    grid.write("a", 0, 5)
    restorable.save()
    with Subscription(grid.store, grid.ref, Scope()) as events:
        for row in (0, 1, 2):
            grid.write("a", row, 6)
        read_until(events, lambda newest: len(newest) == 3 and newest["a", 0].status == 6)
        grid.write("a", 2, 7)
        event = events.get(PATIENCE)
        assert event is not None
    restorable.restore()
    for status in range(later_writes):
        repeated(lambda status=status: grid.write("a", status % 2, 9))
    after = repeated(lambda: drain(Subscription(grid.store, grid.ref, Scope(), since=event.cursor)))
    assert after[0].resync
    assert {each.state.task_index: each.state.version for each in after[1:]} == {
        each.task_index: each.version for each in grid.states()
    }
    (*_, last) = after
    grid.write("a", 1, 50)
    (event,) = drain(Subscription(grid.store, grid.ref, Scope(), since=last.cursor))
    assert (event.state.status, event.resync) == (50, False)


def test_a_cursor_that_the_older_store_knows_continues(restorable: Restorable) -> None:
    grid = Grid.create(restorable.store, 3)
    grid.write("a", 0, 5)
    (event,) = drain(Subscription(grid.store, grid.ref, Scope()))
    restorable.save()
    grid.write("a", 1, 5)
    restorable.restore()
    repeated(lambda: grid.write("a", 2, 5))
    found = repeated(lambda: drain(Subscription(grid.store, grid.ref, Scope(), since=event.cursor)))
    assert found[-1].state.task_index == 2


def drain(events: Subscription) -> list[StateEvent]:
    """Read all events that are available."""
    with events:
        return list(iter(lambda: events.get(0.0), None))
