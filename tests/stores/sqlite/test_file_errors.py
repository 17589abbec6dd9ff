"""Files that are damaged, locked, missing or unusable."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_kit import in_child, opened, raw, recount

from celery_statemanager.errors import AttemptSuperseded, ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.stores.sqlite import SQLiteStore, connection
from celery_statemanager.stores.sqlite.connection import translate
from celery_statemanager.testing.kit import PATIENCE, Grid


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 400 KiB and yield its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


class TestDisks:
    def test_a_full_disk_is_an_outage_until_it_has_room(self, small_disk: Path) -> None:
        with opened(small_disk / "states.db") as store:
            grid = Grid.create(store, 1_000, ("a",))
            writes = (grid.write("a", row, 5, message="x" * 5_000) for row in range(1_000))
            with pytest.raises(StoreUnavailable, match=r"SQLite store .*disk"):
                list(writes)
            written = len(grid.states())
            assert 0 < written < 1_000
            mount("-o", "remount,size=8m", str(small_disk))
            assert grid.write("a", written, 5).cell.version == 1

    def test_a_read_only_disk_is_named_and_used_again_when_it_is_writable(self, small_disk: Path) -> None:
        with opened(small_disk / "states.db") as store:
            grid = Grid.create(store)
            store.close()
            mount("-o", "remount,ro", str(small_disk))
            with pytest.raises(StoreError, match=r"write access|its directory"):
                grid.write("a", 0, 5)
            mount("-o", "remount,rw", str(small_disk))
            assert grid.write("a", 0, 5).cell.version == 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
    def test_a_file_that_its_user_may_not_write_any_more_is_named(self, path: Path) -> None:
        with opened(path) as store:
            grid = Grid.create(store)
        for folder in path.parents[1:]:
            folder.chmod(folder.stat().st_mode | 0o111)
        path.parent.chmod(0o777)

        def work() -> None:
            with opened(path) as store:
                theirs = grid.seen_by(store)
                theirs.write("a", 0, 5)
                store.close()
                path.chmod(0o444)
                os.setuid(65534)
                with pytest.raises(StoreError, match="write access"):
                    theirs.write("a", 0, 6)

        in_child(work)
        assert grid.seen_by(opened(path)).write("a", 0, 7).cell.version == 2


class TestErrors:
    def test_a_lock_held_by_others_raises_unavailable_after_the_timeout(self, path: Path) -> None:
        store = opened(path, timeout=0.05)
        grid = Grid.create(store)
        with raw(path) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                StoreUnavailable, match=rf"{path}.*locked.*0\.05 s; increase the store timeout"
            ) as caught:
                grid.write("a", 0, 5)
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert grid.lowest().status == 0
            db.execute("ROLLBACK")
        assert grid.write("a", 0, 5).cell.version == 1
        store.close()

    def test_a_long_write_makes_other_threads_time_out(self, path: Path) -> None:
        store = opened(path, timeout=0.05)
        grid = Grid.create(store)
        entered, leave = threading.Event(), threading.Event()

        def clock() -> float:
            entered.set()
            assert leave.wait(PATIENCE)
            return 1.0

        slow = threading.Thread(target=lambda: (setattr(store, "_clock", clock), grid.write("a", 0, 5)))
        slow.start()
        assert entered.wait(PATIENCE)
        with pytest.raises(StoreUnavailable, match="other threads"):
            store.drop_worker("nobody")
        leave.set()
        slow.join(PATIENCE)
        assert grid.cell("a", 0).version == 1
        store.close()

    def test_a_waiting_writer_continues_when_the_lock_is_released(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        with raw(path, check_same_thread=False) as db:
            db.execute("BEGIN IMMEDIATE")
            release = threading.Timer(0.1, db.execute, ("ROLLBACK",))
            release.start()
            assert grid.write("a", 0, 5).cell.version == 1
            release.join()

    def test_a_rejected_write_changes_nothing(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        with pytest.raises(AttemptSuperseded):
            grid.write("new", 0, 5, attempt=9)
        with raw(path) as db:
            assert db.execute("SELECT count(*) FROM tag").fetchone() == (0,)
        assert recount(path) == {}

    def test_a_damaged_file_raises_a_store_error(self, path: Path) -> None:
        with opened(path) as store:
            grid = Grid.create(store)
            grid.write("a", 0, 5)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with opened(path) as store, pytest.raises(StoreError, match="damaged: restore it") as caught:
            grid.seen_by(store).write("a", 0, 6)
        assert not isinstance(caught.value, StoreUnavailable)
        assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)

    def test_a_file_that_cannot_grow_raises_unavailable_and_stays_consistent(
        self, path: Path, store: SQLiteStore
    ) -> None:
        import resource

        grid = Grid.create(store)

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            grow = (grid.write("a", row % 3, 5, message="x" * 5_000) for row in range(100_000))
            with pytest.raises(StoreUnavailable, match="disk"):
                list(grow)

        in_child(work)
        assert grid.write("b", 0, 5).cell.version == 1
        recount(path)

    def test_a_full_database_raises_unavailable(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("PRAGMA max_page_count = 2")
            with pytest.raises(sqlite3.OperationalError) as full:
                db.executescript("CREATE TABLE a (b); CREATE TABLE c (d); CREATE TABLE e (f)")
        error = translate(full.value, "states.db", 5)
        assert isinstance(error, StoreUnavailable)
        assert "free space" in str(error)

    def test_a_file_that_became_read_only_raises_a_store_error(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("CREATE TABLE a (b)")
            db.execute("PRAGMA query_only = 1")
            with pytest.raises(sqlite3.OperationalError) as denied:
                db.execute("INSERT INTO a VALUES (1)")
        error = translate(denied.value, "states.db", 5)
        assert type(error) is StoreError
        assert "write access" in str(error)

    def test_a_deleted_directory_raises_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "gone").mkdir()
        store = opened(tmp_path / "gone" / "states.db")
        (tmp_path / "gone").rmdir()
        with pytest.raises(StoreUnavailable, match="check that its directory exists"):
            store.list_jobs()

    def test_a_database_without_a_write_ahead_log_is_rejected(self) -> None:
        with (
            closing(sqlite3.connect(":memory:", isolation_level=None)) as db,
            pytest.raises(StoreError, match="'memory'"),
        ):
            connection._set_up(db, "states.db")

    def test_an_old_sqlite_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"SQLite 3\.24\.9 is too old.*newer"):
            connection.connect(str(tmp_path / "states.db"), 5.0, version=(3, 24, 9))
        connection.connect(str(tmp_path / "states.db"), 5.0, version=(3, 25, 0)).close()

    @pytest.mark.parametrize(
        ("message", "kind", "hint"),
        [
            ("database is locked", StoreUnavailable, "timeout"),
            ("database table is locked: cell", StoreUnavailable, "timeout"),
            ("locking protocol", StoreUnavailable, "timeout"),
            ("database schema has changed", StoreUnavailable, "try again"),
            ("database or disk is full", StoreUnavailable, "free space"),
            ("disk I/O error", StoreUnavailable, "check its disk"),
            ("unable to open database file", StoreUnavailable, "limit of open files"),
            ("out of memory", StoreUnavailable, "memory"),
            ("interrupted", StoreUnavailable, "repeat"),
            ("attempt to write a readonly database", StoreError, "write access"),
            ("access permission denied", StoreError, "write access"),
            ("database disk image is malformed", StoreError, "damaged"),
            ("file is not a database", StoreError, "overwritten"),
            ("unsupported file format", StoreError, "overwritten"),
            ("no such table: job", StoreError, "restore"),
            ("no such column: open", StoreError, "restore"),
            ("string or blob too big", StoreError, "this size"),
            ("large file support is disabled", StoreError, "this size"),
            ("SQL logic error", StoreError, "SQL logic error"),
            ("UNIQUE constraint failed: a.b", StoreError, "UNIQUE"),
        ],
    )
    def test_each_error_passes_or_needs_a_correction(self, message: str, kind: type, hint: str) -> None:
        error = translate(sqlite3.OperationalError(message), "states.db", 5)
        assert type(error) is kind
        assert hint in str(error)

    def test_an_unknown_error_becomes_a_store_error(self) -> None:
        assert "no such table: x" in str(translate(sqlite3.OperationalError("no such table: x"), "states.db", 5))
