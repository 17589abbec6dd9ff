"""PostgreSQL: sessions that end, servers that restart, standbys, and transactions that commit late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from postgres_kit import PostgresServer, running_postgres, server_directory
from servers import wait_for

from celery_statemanager import StoreUnavailable, Subscription, open_store
from celery_statemanager.models import Scope
from celery_statemanager.records import Write
from celery_statemanager.stores import steps
from celery_statemanager.stores.postgres import PostgresStore
from celery_statemanager.stores.postgres.put import SHARED
from celery_statemanager.stores.postgres.transaction import PostgresTransaction
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid, read_until


@pytest.fixture
def postgres_store(postgres_server: PostgresServer, prefix: str) -> Iterator[PostgresStore]:
    with opened(f"{postgres_server.url}?schema={prefix.replace('-', '_')}") as store:
        yield store


def opened(url: str, **options: Any) -> PostgresStore:
    store = open_store(url, **options)
    assert isinstance(store, PostgresStore)
    return store


def end_sessions(server: PostgresServer) -> int:
    """Terminate all sessions of stores; return their number."""
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s"
    return int(server.execute(ended, "celery-statemanager")[0][0])


def sessions(server: PostgresServer) -> int:
    """Return the number of sessions of stores."""
    text = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'celery-statemanager'"
    return int(server.execute(text)[0][0])


def repeated(call: Callable[[], Any]) -> Any:
    """Call again while the store is unavailable."""
    for _ in range(100):
        try:
            return call()
        except StoreUnavailable:
            continue
    return call()


def test_a_write_works_after_its_idle_session_was_ended(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5)
    assert end_sessions(postgres_server)
    wait_for(lambda: sessions(postgres_server) == 0, "the end of the sessions")
    assert grid.write("a", 0, 6).cell.version == 2


def test_writes_during_which_sessions_end_are_applied_or_not(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store, 4, ("a",))
    done = threading.Event()
    failed: list[BaseException] = []

    def write(row: int) -> None:
        try:
            request = grid.request("a", row)
            repeated(lambda: grid.store.begin(grid.ref, request))
            for status in range(2, 60):
                event = f"{row}-{status}"
                repeated(lambda status=status, event=event: grid.write("a", row, status, event_id=event))
            end = Write.ending("a", row, FINISHED, attempt=1)
            repeated(lambda: grid.store.write(grid.ref, end))
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    def end() -> None:
        while not done.wait(0.1):
            end_sessions(postgres_server)

    writers = [threading.Thread(target=write, args=(row,)) for row in range(4)]
    killer = threading.Thread(target=end)
    for each in (*writers, killer):
        each.start()
    for each in writers:
        each.join(3 * PATIENCE)
    done.set()
    killer.join(PATIENCE)
    assert failed == []
    assert grid.decided == {"success", "settled"}
    assert [grid.cell("a", row).version for row in range(4)] == [60] * 4
    _, (column,) = postgres_store.column_summaries(grid.ref)
    assert (column.tally.succeeded, column.tally.pending, column.tally.rows) == (4, 0, 4)


def test_a_subscriber_receives_changes_after_its_session_was_ended(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    with Subscription(grid.store, grid.ref, Scope()) as events:
        grid.write("a", 0, 5)
        assert events.get(PATIENCE)
        end_sessions(postgres_server)
        repeated(lambda: grid.write("a", 1, 7))
        while (event := events.get(PATIENCE)) is not None and event.state.task_index != 1:
            pass
        assert event is not None


@pytest.mark.parametrize("event_id", ["", "\0x", 14 * "\0", 15 * "\0", 16 * "\0", 15 * "x", 32 * "a", 32 * "A"])
def test_a_cell_with_any_event_id_can_be_changed(
    postgres_server: PostgresServer, postgres_store: PostgresStore, prefix: str, event_id: str
) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5, event_id=event_id)
    with opened(f"{postgres_server.url}?schema={prefix.replace('-', '_')}") as other:
        found = Grid(other, grid.ref)
        assert found.cell("a", 0).event_id == event_id
        assert found.write("a", 0, 6).cell.version == 2


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_isolation_of_the_database_is_not_that_of_steps(postgres_server: PostgresServer, isolation: str) -> None:
    database = isolation.replace(" ", "_")
    postgres_server.execute(f"CREATE DATABASE {database}")
    postgres_server.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    with opened(postgres_server.url_of(database)) as store:
        grid = Grid.create(store, 64, ("a",))
        with ThreadPoolExecutor(16) as writers:
            list(writers.map(lambda row: grid.write("a", row, FINISHED), range(64)))
        assert grid.decided == {"success", "settled"}


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_the_encoding_of_the_environment_is_not_used(
    postgres_server: PostgresServer, prefix: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    with opened(f"{postgres_server.url}?schema={prefix.replace('-', '_')}") as store:
        grid = Grid.create(store)
        grid.write("☃", 0, 5, message="☃")
        assert grid.cell("☃", 0).message == "☃"


def test_a_cursor_continues_in_a_process_with_another_time_zone(postgres_server: PostgresServer, prefix: str) -> None:
    url = f"{postgres_server.url}?schema={prefix.replace('-', '_')}&options=-ctimezone%3D"
    with opened(url + "UTC") as store, opened(url + "Asia/Tokyo") as other:
        grid = Grid.create(store)
        with closing(store.watch(grid.ref, Scope())) as watch:
            cursor = watch.cursor
        grid.write("a", 0, 5)
        with closing(other.watch(grid.ref, Scope(), cursor)) as watch:
            batch = watch.read(PATIENCE)
        assert (len(batch.states), batch.resync) == (1, False)


def test_a_transaction_that_commits_late_is_not_missed(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5)
    with (
        closing(postgres_store.watch(grid.ref, Scope())) as watch,
        closing(opened(f"{postgres_server.url}?schema={postgres_store._address.schema}")) as slow,
    ):
        number = slow._pool.call(lambda db: slow._writer._lock(db, grid.ref, None)[0])

        def late(db: Any) -> None:
            transaction = PostgresTransaction(number, 2**62, {("a", 1): None})
            steps.write(transaction, Write.state("a", 1, 6))
            db.execute("BEGIN")
            assert slow._writer._call(transaction, SHARED, db) > 0
            grid.write("a", 2, 7)
            batch = read_until(watch, lambda batch: bool(batch.states))
            assert [(state.task_index, state.status) for state in batch.states] == [(2, 7)]
            cursors.append(watch.cursor)
            assert watch.read(0.0).states == []
            db.execute("COMMIT")

        cursors: list[str] = []
        slow._pool.call(late)
        batch = read_until(watch, lambda batch: bool(batch.states))
        assert [(state.task_index, state.status) for state in batch.states] == [(1, 6)]
    for cursor in cursors:
        with closing(postgres_store.watch(grid.ref, Scope(), cursor)) as watch:
            assert [state.task_index for state in watch.read(PATIENCE).states] == [1]


def test_writers_notify_only_while_somebody_watches(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    with postgres_server.connect() as listener:
        tables = postgres_store._pool.call(lambda db: db.tables)
        listener.execute(f'LISTEN "statemanager_{tables}"')
        grid.write("a", 0, 5)
        listener.execute("SELECT 1")
        assert list(listener.notifies(timeout=0)) == []
        with closing(postgres_store.watch(grid.ref, Scope())):
            grid.write("a", 0, 6)
            assert len(list(listener.notifies(timeout=PATIENCE, stop_after=1))) == 1


def test_a_step_whose_transaction_the_server_ends_changes_nothing(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5)
    with postgres_store._pool._lock:
        for each in postgres_store._pool._idle:
            each.execute("SET idle_in_transaction_session_timeout = '20ms'")
    idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'celery-statemanager' AND pid = ANY(%s)"

    def step(tx: Any) -> None:
        tx.put("a", 0, tx.cell("a", 0), tx.cell("a", 0))
        wait_for(lambda: postgres_server.execute(idle, pids)[0][0] == 0, "the end of the session")

    pids = [each.info.backend_pid for each in postgres_store._pool._idle]
    with pytest.raises(StoreUnavailable, match="idle"):
        postgres_store.transact(grid.ref, step)
    assert grid.cell("a", 0).version == 1
    assert grid.write("a", 0, 6).cell.version == 2


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Run a primary and a standby that streams from it."""
    with running_postgres(wal_level="replica") as primary, server_directory("standby-") as directory:
        standby = PostgresServer(directory, hot_standby="on").copy_of(primary).start()
        try:
            yield primary, standby
        finally:
            standby.stop()


def test_a_standby_can_be_read_until_it_is_promoted(pair: tuple[PostgresServer, PostgresServer]) -> None:
    primary, standby = pair
    both = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
    with opened(f"{both}?target_session_attrs=read-write", timeout=20.0) as store, opened(standby.url) as reader:
        grid = Grid.create(store, 3, ("a",))
        grid.run("a", 0)
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        flushed = primary.execute("SELECT pg_current_wal_lsn()::text")[0][0]
        wait_for(lambda: standby.execute(replayed, flushed)[0][0], "the standby")
        seen = grid.seen_by(reader)
        assert seen.cell("a", 0).succeeded
        with pytest.raises(StoreUnavailable, match="read-only standby"):
            seen.write("a", 1, 5)
        with closing(reader.watch(grid.ref, Scope())) as watch:
            grid.write("a", 1, 5)
            assert read_until(watch, lambda batch: bool(batch.states)).states[0].status == 5
            cursor = watch.cursor
        primary.stop(kill=True)
        standby.promote()
        repeated(lambda: grid.write("a", 2, 8))
        assert grid.cell("a", 2).status == 8
        assert repeated(lambda: seen.write("a", 1, 9)).cell.version == 2
        with closing(store.watch(grid.ref, Scope(), cursor)) as watch:
            assert watch.read(0.0).resync


def test_a_store_survives_a_restart_of_its_server() -> None:
    with running_postgres(synchronous_commit="on") as server, opened(server.url, timeout=10.0) as store:
        grid = Grid.create(store)
        with Subscription(store, grid.ref, Scope()) as events:
            grid.write("a", 0, 5)
            assert events.get(PATIENCE)
            server.stop(kill=True)
            with pytest.raises(StoreUnavailable):
                grid.write("a", 0, 6)
            server.start()
            repeated(lambda: grid.write("a", 1, 7))
            while (event := events.get(PATIENCE)) is not None and event.state.task_index != 1:
                pass
            assert event is not None


def test_a_lock_that_somebody_holds_raises_within_the_timeout(
    postgres_server: PostgresServer, postgres_store: PostgresStore
) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5)
    table = f"{postgres_store._address.schema}.statemanager_cell"
    url = f"{postgres_server.url}?schema={postgres_store._address.schema}"
    with postgres_server.connect() as other, opened(url, timeout=0.3) as impatient:
        with other.transaction():
            other.execute(f"LOCK TABLE {table}")
            with pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
                grid.seen_by(impatient).write("a", 0, 6)
        assert grid.seen_by(impatient).write("a", 0, 7).cell.version == 2


def test_a_closed_connection_holds_no_session(postgres_server: PostgresServer) -> None:
    store = opened(postgres_server.url)
    store.now()
    store.close()
    wait_for(lambda: sessions(postgres_server) == 0, "the end of the sessions")
