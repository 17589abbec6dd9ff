"""What only SQLite has: a file, its locks, connections that must not cross a fork, polling, and being killed."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from celery_statemanager import aggregate, open_store
from celery_statemanager.errors import AttemptSuperseded, ConfigurationError, JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.manager import Manager, new_event_id
from celery_statemanager.models import Scope
from celery_statemanager.records import CALLBACK_ROW, Cancellation, JobKey, JobRef, Tally, Write
from celery_statemanager.stores import steps
from celery_statemanager.stores.sqlite import SQLiteStore, connection, location
from celery_statemanager.stores.sqlite.cells import COLUMNS, cell_of
from celery_statemanager.stores.sqlite.connection import translated
from celery_statemanager.stores.sqlite.jobs import MOST_KNOWN
from celery_statemanager.stores.sqlite.kinds import COUNTED, Kind
from celery_statemanager.stores.sqlite.listing import PAGE
from celery_statemanager.stores.sqlite.pool import abandoned
from celery_statemanager.stores.sqlite.transaction import SQLiteTransaction
from celery_statemanager.stores.sqlite.watch import MOST_STATES, SQLiteWatch
from celery_statemanager.testing.clock import FakeClock
from celery_statemanager.testing.kit import FAILED, FINISHED, PATIENCE, Grid, read_until
from celery_statemanager.transitions import tally_of

MANY = 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "states.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with opened(path) as store:
        yield store


def opened(path: Path, **options: object) -> SQLiteStore:
    store = open_store(f"sqlite:///{path}", **options)  # type: ignore[arg-type]
    assert isinstance(store, SQLiteStore)
    return store


def raw(path: Path, **options: object) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, isolation_level=None, **options))  # type: ignore[call-overload]


def open_files(path: Path) -> int:
    """Count this process's open files of a database, its log and shared memory included."""
    links = (os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
    return sum(link.startswith(str(path)) for link in links)


def forked(work: Callable[[], object]) -> Callable[[], None]:
    """Do something in a forked child; call what is given back to wait for its success."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads, which are the point here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not run pytest's own ending
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def wait() -> None:
        alarm = threading.Timer(PATIENCE, os.kill, (pid, signal.SIGKILL))
        alarm.start()
        status = os.waitpid(pid, 0)[1]
        alarm.cancel()
        assert status == 0, f"the child ended with status {status}"

    return wait


def in_child(work: Callable[[], object]) -> None:
    forked(work)()


def recount(path: Path) -> dict[tuple[str, int], int]:
    """Check all that is derived from cells against the cells; give the versions by tag and row."""
    versions: dict[tuple[str, int], int] = {}
    with opened(path) as store, raw(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for number, job_id, run_token in db.execute("SELECT id, job_id, run_token FROM job").fetchall():
            job = store.get_job(JobKey(job_id, run_token or None))
            seqs = [seq for (seq,) in db.execute("SELECT seq FROM cell WHERE job = ?", (number,))]
            assert len(set(seqs)) == len(seqs)
            for tag, kind, name, *tally in db.execute(
                f"SELECT id, kind, name, {', '.join(Tally._fields)} FROM tag WHERE job = ?", (number,)
            ).fetchall():
                cells = {
                    row: cell_of(cell)
                    for row, *cell in db.execute(
                        f"SELECT task_index, {', '.join(COLUMNS)} FROM cell WHERE job = ? AND tag = ?", (number, tag)
                    )
                }
                versions.update({(name, row): cell.version for row, cell in cells.items()})
                gaps = db.execute("SELECT low, high FROM gap WHERE job = ? AND tag = ? ORDER BY high", (number, tag))
                if kind in COUNTED:
                    total = Tally()
                    for cell in cells.values():
                        total = total.plus(tally_of(cell))
                    assert Tally(*tally) == total
                    missing = [row for low, high in gaps for row in range(low, high + 1)]
                    assert missing == sorted(set(aggregate.expected_rows(job, name)) - cells.keys())
                else:
                    assert gaps.fetchall() == []
                    assert Tally(*tally) == Tally()
    return versions


class TestLocation:
    def test_a_relative_path_is_made_absolute_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(tmp_path)
        with open_store("sqlite:///states.db") as store:
            monkeypatch.chdir(elsewhere)
            Manager.create(store, "job", num_tasks=1)
        assert (tmp_path / "states.db").exists()
        assert not list(elsewhere.iterdir())

    def test_opening_connects_to_nothing_and_makes_nothing(self, path: Path) -> None:
        opened(path)
        assert not list(path.parent.iterdir())

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("sqlite://", "names no file"),
            ("sqlite:///", "names no file"),
            ("sqlite://states.db", "names no file; write sqlite:///states.db"),
            ("sqlite:///dir/", "names no file"),
            ("sqlite:///:memory:", "memory://"),
            ("sqlite://:memory:", "memory://"),
            ("sqlite:///states.db?mode=ro", "without options"),
            ("sqlite:///{tmp}", "is a directory; name a file"),
            ("sqlite:///{tmp}/none/states.db", "no directory .*/none; make it first: mkdir -p"),
            ("sqlite:///{tmp}/text", "no SQLite database"),
            ("sqlite:///{tmp}/short", "no SQLite database"),
            ("sqlite:///{tmp}/text/states.db", "no directory"),
            ("sqlite:///{tmp}/fifo", "not a regular file"),
            ("sqlite:///{tmp}/" + "x" * 300, "name too long"),
            ("sqlite:///{tmp}/foreign.db", "another application"),
            ("sqlite:///{tmp}/marked.db", r"another application \(application_id 0x7, ours is 0x"),
            ("sqlite:///{tmp}/newer.db", r"newer release \(schema 99, this one knows 2\): upgrade"),
        ],
    )
    def test_what_cannot_be_used_is_told_at_open_and_nothing_is_made(
        self, tmp_path: Path, url: str, words: str
    ) -> None:
        (tmp_path / "text").write_text("no database, but longer than the header of one " * 9)
        (tmp_path / "short").write_bytes(b"SQLite format 3\x00")
        os.mkfifo(tmp_path / "fifo")
        for name, script in {
            "foreign.db": "CREATE TABLE person (name)",
            "marked.db": "PRAGMA application_id = 7",
            "newer.db": f"PRAGMA application_id = {location.APPLICATION_ID}; PRAGMA user_version = 99",
        }.items():
            with raw(tmp_path / name) as db:
                db.executescript(script)
        before = sorted(tmp_path.iterdir())
        url = url.format(tmp=tmp_path)
        with pytest.raises(ConfigurationError, match=f"(?i){words}") as refused:
            open_store(url)
        assert url.partition("?")[0] in str(refused.value) or "/" in str(refused.value)
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("sealed", ["directory", "file"])
    def test_a_place_without_access_is_told_at_open(self, tmp_path: Path, path: Path, sealed: str) -> None:
        path.write_bytes(b"")
        (path if sealed == "file" else tmp_path).chmod(0o444 if sealed == "file" else 0o555)

        def work() -> None:
            if os.getuid() == 0:
                for above in tmp_path.parents:
                    if above.stat().st_uid == 0 and above != Path("/"):
                        above.chmod(0o755)
                tmp_path.chmod(0o555 if sealed == "directory" else 0o777)
                os.setuid(65534)
            with pytest.raises(ConfigurationError, match=f"{tmp_path}.*(write access|change its mode)"):
                opened(path)

        modes = {above: above.stat().st_mode for above in tmp_path.parents}
        try:
            in_child(work)
        finally:
            for above, mode in modes.items():
                if above.stat().st_mode != mode:
                    above.chmod(mode)
            tmp_path.chmod(0o755)

    @pytest.mark.parametrize("content", [b"", None])
    def test_an_empty_file_and_an_empty_database_are_taken(self, path: Path, content: bytes | None) -> None:
        if content is None:
            with raw(path) as db:
                db.execute("PRAGMA user_version = 3")
        else:
            path.write_bytes(content)
        with opened(path) as store:
            assert Manager.create(store, "job", num_tasks=1).get_state().status == 0

    def test_another_applications_tables_behind_an_unwritten_log_are_found_at_the_first_call(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE person (name)")
            with opened(path) as store, pytest.raises(ConfigurationError, match="another application"):
                store.list_jobs()

    def test_the_file_bears_our_mark_before_the_log_is_moved_into_it(self, path: Path) -> None:
        with opened(path) as store:
            Manager.create(store, "job", num_tasks=1)
            header = path.read_bytes()[:108]
        assert int.from_bytes(header[68:72], "big") == location.APPLICATION_ID
        assert int.from_bytes(header[60:64], "big") == location.SCHEMA

    def test_a_store_is_known_by_its_file(self, path: Path) -> None:
        assert repr(opened(path)) == f"<SQLiteStore {path}>"

    def test_unknown_options_and_odd_timeouts_are_refused(self, path: Path) -> None:
        with pytest.raises(ConfigurationError, match="colour"):
            opened(path, colour="red")
        for timeout in (-1, float("nan"), float("inf"), True, "5"):
            with pytest.raises(ConfigurationError, match="number of seconds"):
                opened(path, timeout=timeout)

    MOUNTS = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:27 / /home rw - autofs systemd-1 rw
32 31 0:45 / /home rw,relatime shared:2 master:9 - nfs4 server:/home rw
33 32 8:1 / /home/ann/local rw - xfs /dev/sda1 rw
34 22 0:50 / /mnt/my\040share rw - cifs //server/share rw
35 22 0:51 / /proc rw - proc proc rw
a line from the future
"""

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/srv/states.db", "ext4"),
            ("/home/ann/states.db", "nfs4"),
            ("/home/ann/local/states.db", "xfs"),
            ("/home/ann/localhost/states.db", "nfs4"),
            ("/homestead/states.db", "ext4"),
            ("/mnt/my share/deep/states.db", "cifs"),
        ],
    )
    def test_the_longest_mount_point_above_a_file_tells_its_file_system(self, path: str, kind: str) -> None:
        assert location.file_system(path, self.MOUNTS) == kind
        assert location.file_system(path, "") is None

    @pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "afs", "fuse.sshfs"])
    def test_a_network_file_system_is_refused_by_name(self, path: Path, kind: str) -> None:
        mounts = f"22 1 254:1 / / rw - ext4 /dev/root rw\n40 22 0:50 / {path.parent} rw - {kind} there rw"
        with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\).*local disk"):
            location.locate(f"sqlite:///{path}", lambda: mounts)
        assert location.locate(f"sqlite:///{path}", lambda: mounts.replace(kind, "btrfs")) == str(path)

    def test_a_system_without_mountinfo_refuses_no_place(self, tmp_path: Path, path: Path) -> None:
        assert location.read_mountinfo(tmp_path / "none") == ""
        assert location.locate(f"sqlite:///{path}", lambda: "") == str(path)

    def test_a_link_is_judged_by_what_it_points_to(self, tmp_path: Path, path: Path) -> None:
        (tmp_path / "link.db").symlink_to(path)
        assert location.locate(f"sqlite:///{tmp_path}/link.db") == str(path)


class TestTrouble:
    def test_a_lock_held_by_others_is_unavailable_after_the_timeout(self, path: Path) -> None:
        store = opened(path, timeout=0.05)
        grid = Grid.create(store)
        with raw(path) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match=rf"{path}.*locked.*0\.05 s; a larger store timeout") as refused:
                grid.write("a", 0, 5)
            assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
            assert grid.lowest().status == 0
            db.execute("ROLLBACK")
        assert grid.write("a", 0, 5).cell.version == 1
        store.close()

    def test_a_thread_that_writes_too_long_keeps_the_others_out(self, path: Path) -> None:
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

    def test_a_writer_that_is_kept_waiting_gets_its_turn(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        with raw(path, check_same_thread=False) as db:
            db.execute("BEGIN IMMEDIATE")
            release = threading.Timer(0.1, db.execute, ("ROLLBACK",))
            release.start()
            assert grid.write("a", 0, 5).cell.version == 1
            release.join()

    def test_what_raises_changes_nothing(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        with pytest.raises(AttemptSuperseded):
            grid.write("new", 0, 5, attempt=9)
        with raw(path) as db:
            assert db.execute("SELECT count(*) FROM tag").fetchone() == (0,)
        assert recount(path) == {}

    def test_a_damaged_file_is_a_store_error(self, path: Path) -> None:
        with opened(path) as store:
            grid = Grid.create(store)
            grid.write("a", 0, 5)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with opened(path) as store, pytest.raises(StoreError, match="damaged: restore it") as refused:
            grid.seen_by(store).write("a", 0, 6)
        assert not isinstance(refused.value, StoreUnavailable)
        assert isinstance(refused.value.__cause__, sqlite3.DatabaseError)

    def test_a_file_that_may_not_grow_is_unavailable_and_whole_afterwards(self, path: Path, store: SQLiteStore) -> None:
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

    def test_a_full_database_is_unavailable(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("PRAGMA max_page_count = 2")
            with pytest.raises(sqlite3.OperationalError) as full:
                db.executescript("CREATE TABLE a (b); CREATE TABLE c (d); CREATE TABLE e (f)")
        error = translated(full.value, "states.db", 5)
        assert isinstance(error, StoreUnavailable)
        assert "make room" in str(error)

    def test_a_file_that_became_read_only_is_a_store_error(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("CREATE TABLE a (b)")
            db.execute("PRAGMA query_only = 1")
            with pytest.raises(sqlite3.OperationalError) as denied:
                db.execute("INSERT INTO a VALUES (1)")
        error = translated(denied.value, "states.db", 5)
        assert type(error) is StoreError
        assert "write access" in str(error)

    def test_a_vanished_directory_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "gone").mkdir()
        store = opened(tmp_path / "gone" / "states.db")
        (tmp_path / "gone").rmdir()
        with pytest.raises(StoreUnavailable, match="directory is still there"):
            store.list_jobs()

    def test_a_file_without_a_log_is_refused(self) -> None:
        with (
            closing(sqlite3.connect(":memory:", isolation_level=None)) as db,
            pytest.raises(StoreError, match="'memory'"),
        ):
            connection._set_up(db, "states.db")

    def test_an_old_sqlite_is_refused(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "_OLDEST", (99, 0, 0))
        with pytest.raises(ConfigurationError, match=r"too old.*newer"):
            store.list_jobs()

    def test_an_error_of_no_known_kind_is_a_store_error(self) -> None:
        assert "no such table: x" in str(translated(sqlite3.OperationalError("no such table: x"), "states.db", 5))


class TestConnections:
    def test_many_processes_may_make_the_file_at_once(self, path: Path) -> None:
        gate, opener = os.pipe()

        def work(name: str) -> None:
            os.close(opener)
            os.read(gate, 1)
            with opened(path) as store:
                Manager.create(store, name, num_tasks=1, task_index=0).set_state("a", 5)

        waits = [forked(lambda name=f"job {number}": work(name)) for number in range(12)]  # type: ignore[misc]
        os.close(opener)
        os.close(gate)
        for wait in waits:
            wait()
        with opened(path) as store:
            assert len(store.list_jobs().jobs) == 12
        recount(path)

    def test_the_log_is_written_ahead_and_synchronised_at_checkpoints(self, path: Path, store: SQLiteStore) -> None:
        Grid.create(store)
        with store._pool.writing() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (1,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_threads_that_come_and_go_leave_no_files_open(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 200)
        for row in range(200):
            thread = threading.Thread(target=lambda row=row: grid.write("a", row, 5))  # type: ignore[misc]
            thread.start()
            thread.join(PATIENCE)
        assert len(grid.states()) == 200
        assert open_files(path) <= 6
        threads = [threading.Thread(target=lambda row=row: grid.write("a", row, 6)) for row in range(200)]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert {state.version for state in grid.states()} == {2}
        assert open_files(path) <= 40

    def test_a_closed_store_holds_no_file_and_connects_again(self, path: Path) -> None:
        store = opened(path)
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5)
        assert open_files(path)
        store.close()
        assert open_files(path) == 0
        assert [state.version for state in read_until(watch, lambda batch: bool(batch.states)).states] == [1]
        assert grid.write("a", 0, 6).cell.version == 2
        store.close()
        store.close()
        assert open_files(path) == 0

    def test_a_connection_lent_while_the_store_closes_is_closed_when_it_comes_back(self, path: Path) -> None:
        store = opened(path)
        with store._pool.reading():
            store.close()
            assert open_files(path)
        assert open_files(path) == 0

    def test_a_store_that_is_forgotten_closes_its_files(self, path: Path) -> None:
        store = opened(path)
        Grid.create(store).write("a", 0, 5)
        assert open_files(path)
        del store
        gc.collect()
        assert open_files(path) == 0

    def test_a_call_within_a_call_of_the_same_thread_spoils_nothing(self, path: Path) -> None:
        inner: list[object] = []

        def clock() -> float:
            if store is not None and not inner:
                inner.append(None)
                inner[0] = store.list_workers()
                with pytest.raises(StoreUnavailable):
                    store.drop_worker("w")
            return 1.0

        store = None
        outer = opened(path, timeout=0.05, clock=clock)
        grid = Grid.create(outer)
        store = outer
        assert grid.write("a", 0, 5).cell.version == 1
        assert inner == [[]]
        recount(path)
        outer.close()


class TestForks:
    def test_no_connection_crosses_a_fork(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())

        def work() -> None:
            assert open_files(path) == 0
            for _ in range(50):
                grid.write("a", 0, 5)
            assert len(read_until(watch, lambda batch: bool(batch.states)).states) == 1

        wait = forked(work)
        assert open_files(path) == 0
        for _ in range(50):
            grid.write("a", 0, 6)
        wait()
        assert grid.cell("a", 0).version == 100
        assert read_until(watch, lambda batch: batch.states[-1:] != [] and batch.states[-1].version == 100)
        recount(path)

    def test_a_fork_waits_for_calls_under_way_and_both_sides_go_on(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 4)
        stop = threading.Event()

        def hammer(row: int) -> None:
            while not stop.is_set():
                grid.write("a", row, 5)
                grid.lowest()

        threads = [threading.Thread(target=hammer, args=(row,), daemon=True) for row in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                in_child(lambda: [grid.write("a", 2, 7) for _ in range(5)])
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert recount(path)["a", 2] == 100

    def test_a_fork_does_not_wait_for_ever_and_the_child_lets_the_strange_connection_be(self, path: Path) -> None:
        store = opened(path, timeout=0.05)
        grid = Grid.create(store)
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store._pool.reading() as db:
                db.execute("SELECT count(*) FROM job").fetchone()
                entered.set()
                leave.wait(PATIENCE)

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        assert entered.wait(PATIENCE)

        def work() -> None:
            assert len(abandoned) == 1
            grid.write("a", 0, 5)

        in_child(work)
        leave.set()
        holder.join(PATIENCE)
        assert grid.cell("a", 0).version == 1
        store.close()

    def test_a_watch_under_way_survives_forks_in_the_parent_and_can_be_closed_in_the_child(
        self, store: SQLiteStore
    ) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        versions: list[int] = []
        reader = threading.Thread(
            daemon=True,
            target=lambda: versions.extend(
                state.version
                for state in read_until(watch, lambda batch: any(state.version == 20 for state in batch.states)).states
            ),
        )
        reader.start()
        for _ in range(20):
            in_child(lambda: (grid.write("a", 0, 5), watch.close()))
        reader.join(PATIENCE)
        assert versions[-1] == 20

    def test_a_fork_behind_pythons_back_is_noticed_at_the_next_call(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5)
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            seen = grid.write("a", 0, 6).cell.version == 2 and len(watch.read(PATIENCE).states) == 1
            os._exit(0 if seen and len(abandoned) == 3 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert grid.write("a", 0, 7).cell.version == 3
        recount(path)

    def test_a_watch_that_another_thread_was_about_to_close_does_not_hang_the_child(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        assert isinstance(watch, SQLiteWatch)
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with watch._closed._cond:
                entered.set()
                leave.wait(PATIENCE)

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        assert entered.wait(PATIENCE)
        in_child(watch.close)
        leave.set()
        holder.join(PATIENCE)

    def test_a_signal_that_breaks_the_wait_before_a_fork_leaves_the_store_usable(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store._pool.reading():
                entered.set()
                leave.wait(PATIENCE)

        def interrupt(*_: object) -> None:
            raise InterruptedError

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        assert entered.wait(PATIENCE)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(InterruptedError):
                store._pool.before_fork()
        finally:
            signal.signal(signal.SIGALRM, before)
        leave.set()
        holder.join(PATIENCE)
        assert grid.write("a", 0, 5).cell.version == 1

    def test_a_closed_watch_stays_closed_in_a_child(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        watch.close()
        in_child(lambda: watch.read(600))


class TestTime:
    def test_times_never_decrease_though_the_clock_does(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grid = Grid.create(store, 2, ("a",))
            clock.advance(60)
            newest = grid.run("a", 0, FAILED).cell.timestamp
            clock.advance(-3600)
            assert grid.write("b", 1, 5).cell.timestamp == newest
            assert grid.begin("a", 1).cell.began_at == newest
            clock.advance(3601)
            assert grid.write("b", 1, 5).cell.timestamp == newest + 1_000_000

    def test_a_decision_is_not_followed_by_an_earlier_write(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grid = Grid.create(store, 1, ("a",))
            clock.advance(60)
            grid.cancel()
            decided = grid.job.latches["settled"].decided_at
            clock.advance(-30)
            assert grid.run("settled", CALLBACK_ROW).cell.timestamp == decided

    def test_activity_is_exact_though_it_is_noted_once_a_minute(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store, raw(path) as db:
            grid = Grid.create(store)
            notes = []
            for _ in range(5):
                clock.advance(25)
                grid.write("a", 0, 5)
                notes.append(db.execute("SELECT touched FROM job").fetchone()[0] - grid.job.created_at)
                active = grid.job.last_activity
                assert active == store.now()
                assert [store.list_jobs(idle_before=active + more).jobs != [] for more in (0, 1)] == [False, True]
            assert notes == [0, 0, 75_000_000, 75_000_000, 75_000_000]
            clock.advance(25)
            grid.tombstone()
            assert grid.job.last_activity == active

    def test_idle_jobs_are_paged_though_some_become_active(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grids = {name: Grid.create(store, job_id=name) for name in "abcdefgh"}
            clock.advance(3600)
            first = store.list_jobs(limit=3, idle_before=store.now())
            grids["e"].write("a", 0, 5)
            rest = store.list_jobs(first.cursor, 100, idle_before=store.now())
            assert [job.job_id for job in first.jobs + rest.jobs] == list("abcdfgh")
            assert rest.cursor is None


class TestSpelling:
    @pytest.mark.parametrize(
        "event_id", ["0" * 32, "f" * 32, "F" * 32, "g" * 32, "ab" * 15 + "a ", "x", "ä" * 32, "0" * 31, "0" * 64]
    )
    def test_every_event_id_comes_back_as_it_was(self, store: SQLiteStore, event_id: str) -> None:
        grid = Grid.create(store)
        assert grid.write("a", 0, 5, event_id=event_id).cell.event_id == event_id
        assert grid.cell("a", 0).event_id == event_id
        assert grid.write("a", 0, 6, event_id=event_id).changed is False

    @pytest.mark.parametrize("message", ["", "a\x00b", "ß\n☃", None])
    def test_every_message_comes_back_as_it_was(self, store: SQLiteStore, message: str | None) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5, message=message)
        assert grid.state("a", 0).message == message

    def test_more_jobs_than_are_remembered_do_no_harm(self, store: SQLiteStore) -> None:
        grids = [Grid.create(store, job_id=f"job {number}", tags=("a",)) for number in range(MOST_KNOWN + 5)]
        for version in (1, 2):
            for grid in grids:
                assert grid.write("a", 0, 5).cell.version == version
        assert len(store._jobs._known) == MOST_KNOWN

    def test_strays_and_extras_are_kept_apart_from_the_column(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 4, {"a": [0, 1], "b": [2, 3]})
        grid.write("a", 3, -9)
        grid.write("a", 0, 5)
        grid.write("z", 3, -8)
        grid.run("success", CALLBACK_ROW)
        grid.write("success", 0, 7)
        assert (grid.lowest("a").status, grid.lowest("a").task_index) == (0, 1)
        assert grid.state("a", 3).status == -9
        assert {(state.tag, state.task_index) for state in grid.states()} == {
            ("a", 3),
            ("a", 0),
            ("z", 3),
            ("success", 0),
        }
        assert [state.task_index for state in grid.states("a")] == [3, 0]
        assert [state.tag for state in grid.states(row=3)] == ["a", "z"]
        with raw(path) as db:
            kinds = dict(db.execute("SELECT kind, count(*) FROM tag GROUP BY kind"))
        assert kinds == {Kind.CALLBACK: 1, Kind.EXPECTED: 1, Kind.EXTRA: 2, Kind.STRAY: 1}
        recount(path)

    def test_gaps_are_split_wherever_a_row_falls(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 12, {"a": [*range(5), *range(7, 10)], "b": range(12)})
        for row in (2, 0, 4, 1, 3, 9, 8, 7):
            grid.write("a", row, 5)
            recount(path)
        assert grid.lowest("a").status == 5


def fill(store: SQLiteStore, ref: JobRef, rows: int) -> None:
    """Write many cells as ``write`` would, but commit once."""
    with store._pool.writing() as db:
        for row in range(rows):
            request = Write(tag="a", task_index=row, status=2 + row % 90, event_id=new_event_id(), message=f"row {row}")
            steps.write(SQLiteTransaction(db, store._jobs, ref, store.now(), ("a", row)), request)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    path = tmp_path_factory.mktemp("big") / "states.db"
    with opened(path) as store:
        grid = Grid.create(store, MANY, ("a", "b"))
        fill(store, grid.ref, MANY)
        yield grid


def path_of(grid: Grid) -> Path:
    assert isinstance(grid.store, SQLiteStore)
    return Path(grid.store._path)


def effort(grid: Grid, work: Callable[[], object]) -> int:
    """Count what SQLite computes for a call, in units of ten of its instructions."""
    store, counts = grid.store, [0]
    assert isinstance(store, SQLiteStore)

    def count() -> int:
        counts[0] += 1
        return 0

    work()
    with store._pool.reading() as reader, store._pool.writing() as writer:
        both = (reader, writer)
    for db in both:
        db.set_progress_handler(count, 10)
    work()
    for db in both:
        db.set_progress_handler(None, 10)
    return counts[0]


class TestSize:
    def test_a_state_takes_at_most_300_bytes(self, big: Grid) -> None:
        with raw(path_of(big)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path_of(big).stat().st_size / MANY <= 300

    @pytest.mark.parametrize(
        "work",
        [
            lambda grid: grid.lowest(),
            lambda grid: grid.lowest("a"),
            lambda grid: grid.state("a", 50),
            lambda grid: grid.lowest(row=50),
            lambda grid: grid.store.survey(grid.ref),
            lambda grid: grid.write("a", 50, 5),
            lambda grid: grid.begin("a", 50, takes_over=True),
            lambda grid: grid.cell("a", 50),
            lambda grid: grid.job,
            lambda grid: grid.store.list_jobs(due=True),
            lambda grid: grid.store.list_jobs(idle_before=1),
            lambda grid: list(grid.store.list_open_attempts()),
            lambda grid: next(grid.store.list_states(grid.ref, Scope())),
            lambda grid: grid.states(row=50),
            lambda grid: grid.store.watch(grid.ref, Scope()).read(0),
        ],
    )
    def test_no_cost_grows_with_the_job(self, big: Grid, tmp_path: Path, work: Callable[[Grid], object]) -> None:
        with opened(tmp_path / "small.db") as store:
            small = Grid.create(store, 600, ("a", "b"))
            fill(store, small.ref, 600)
            assert effort(big, lambda: work(big)) <= 2 * effort(small, lambda: work(small)) + 50

    def test_a_slow_reader_of_the_list_holds_no_transaction_and_little_memory(self, big: Grid) -> None:
        with raw(path_of(big)) as db:
            states = big.store.list_states(big.ref, Scope())
            next(states)
            tracemalloc.start()
            count, checked = 1, 0
            for count, _ in enumerate(states, start=2):
                if count % 9_000 == 0:
                    big.write("b", 0, 5)
                    busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    assert busy == 0
                    checked += 1
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert count in (MANY, MANY + 1)
        assert checked > 10
        assert peak < 5_000_000

    def test_states_come_in_order_each_once_and_none_is_left_out_while_others_write(
        self, path: Path, store: SQLiteStore
    ) -> None:
        grid = Grid.create(store, 3 * PAGE)
        fill(store, grid.ref, 3 * PAGE)
        listing = store.list_states(grid.ref, Scope())
        seen = []
        for state in listing:
            seen.append(state)
            if len(seen) % 100 == 0:
                for row in (len(seen) - 1, 3 * PAGE - 1 - len(seen) // 3):
                    grid.write("a", row, 7)
        assert sorted(state.task_index for state in seen) == list(range(3 * PAGE))
        assert [state.timestamp for state in seen] == sorted(state.timestamp for state in seen)  # type: ignore[type-var]

    def test_what_was_written_in_one_moment_is_ordered_by_tag_and_row(self, path: Path) -> None:
        with opened(path, clock=FakeClock()) as store:
            grid = Grid.create(store, PAGE)
            for row in reversed(range(PAGE)):
                for tag in ("b", "Ä", "a"):
                    grid.write(tag, row, 5)
            expected = [(tag, row) for tag in ("a", "b", "Ä") for row in range(PAGE)]
            assert [(state.tag, state.task_index) for state in grid.states()] == expected

    def test_a_list_of_a_job_deleted_meanwhile_does_not_pass_for_whole(self, store: SQLiteStore) -> None:
        grid = Grid.create(store, 2 * PAGE)
        fill(store, grid.ref, 2 * PAGE)
        states = store.list_states(grid.ref, Scope())
        next(states)
        grid.delete()
        with pytest.raises(JobNotFound):
            list(states)

    def test_a_big_job_is_deleted_at_once_and_purged_by_whoever_comes(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 20_000, {"a": range(0, 20_000, 2), "b": range(20_000)})
        fill(store, grid.ref, 20_000)
        assert effort(grid, lambda: None) == 0
        assert store.delete_job(grid.job)
        portions = [store.purge(1_000) for _ in range(3)]
        assert portions == [1_000, 1_000, 1_000]
        in_child(lambda: [store.purge(1_000) for _ in range(3)])
        with opened(path) as other:
            while other.purge(1_000):
                pass
        with raw(path) as db:
            for table in ("job", "tag", "cell", "gap", "garbage"):
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)

    def test_numbers_of_deleted_jobs_are_not_used_again(self, path: Path, store: SQLiteStore) -> None:
        first = Grid.create(store)
        job = first.job
        first.delete()
        second = Grid.create(store)
        with raw(path) as db:
            assert db.execute("SELECT id FROM job").fetchone() == (2,)
        second.delete()
        store.create_job(job)
        assert first.write("a", 0, 5).cell.version == 1
        assert first.lowest("a", 0).status == 5


class TestWatching:
    def test_changes_are_read_soon_and_each_version_last(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        delays = []
        with opened(path) as other:
            for number in range(1, 31):
                write = threading.Timer(0.03, grid.seen_by(other).write, ("a", 0, 5))
                write.start()
                batch = read_until(watch, lambda batch, number=number: number in [s.version for s in batch.states])  # type: ignore[misc]
                stamp = batch.states[-1].timestamp
                assert stamp is not None
                delays.append(time.time() - stamp.timestamp())
                write.join()
        assert sorted(delays)[len(delays) // 4] < 0.03

    def test_an_idle_watch_costs_next_to_nothing(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        begun = time.thread_time()
        assert watch.read(1.0).states == []
        assert time.thread_time() - begun < 0.2

    def test_writes_elsewhere_wake_no_reader(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        Grid.create(store, job_id="other").write("a", 0, 5)
        store.put_worker("w", "{}", 5)
        batch = watch.read(0.05)
        assert (batch.states, batch.job_changed) == ([], False)

    def test_more_changes_than_one_batch_holds_come_in_several(self, store: SQLiteStore) -> None:
        rows = 2 * MOST_STATES + 500
        grid = Grid.create(store, rows)
        watch = store.watch(grid.ref, Scope("a"))
        fill(store, grid.ref, rows)
        sizes = [len(watch.read(PATIENCE).states) for _ in range(3)]
        assert sizes == [MOST_STATES, MOST_STATES, 500]
        assert watch.read(0).states == []

    def test_many_watches_share_one_connection(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watches = [store.watch(grid.ref, Scope()) for _ in range(50)]
        grid.write("a", 0, 5)
        assert [len(watch.read(PATIENCE).states) for watch in watches] == [1] * 50
        assert open_files(path) <= 8

    def test_a_watch_of_a_deleted_job_finds_none_once_it_looks(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        in_child(grid.delete)
        with pytest.raises(JobNotFound):
            watch.read(PATIENCE)

    def test_a_watch_of_a_damaged_store_says_so(self, path: Path) -> None:
        store = opened(path)
        watch = store.watch(Grid.create(store).ref, Scope())
        store.close()
        path.write_bytes(b"no database any more " * 999)
        with pytest.raises(StoreError, match="overwritten"):
            watch.read(PATIENCE)

    def test_a_poll_that_failed_is_made_on_a_new_connection(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        polled = store._pulse._connection
        assert polled is not None
        polled.close()
        with pytest.raises(StoreError):
            watch.read(0)
        grid.write("a", 0, 5)
        assert len(watch.read(0).states) == 1

    def test_a_cell_that_never_began_is_seen_as_cancelled_in_a_cancelled_job(self, store: SQLiteStore) -> None:
        grid = Grid.create(store, 2, ("a",))
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 0)
        grid.update(lambda job: replace(job, cancelled=Cancellation("no more", 1)))
        batch = read_until(watch, lambda batch: batch.job_changed and bool(batch.states))
        assert batch.states[-1:] in ([grid.state("a", 0)], [replace(grid.state("a", 0), status=0, message=None)])


WRITER = """
import sys
from celery_statemanager import Manager, open_store
from celery_statemanager.models import Status
store = open_store(sys.argv[1], timeout=30)
manager = Manager.open(store, "job", task_index=int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
number = 0
while True:
    number += 1
    tag = "ab"[number % 2]
    status = Status.FINISHED if number % 7 == 0 else Status.FAILED if number % 11 == 0 else number % 90
    state = manager.set_state(tag, status, "m" * (number % 300), {"n": number})
    manager.set_state("new %d" % number, 5)
    print(tag, state.version, flush=True)
"""


def writer(path: Path, row: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}", str(row)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class TestKilled:
    def test_a_writer_killed_in_the_middle_leaves_everything_whole(self, path: Path) -> None:
        with opened(path) as store:
            Manager.create(store, "job", num_tasks=3, tags=("a", "b"))
        acknowledged: dict[tuple[str, int], int] = {}
        for turn in range(8):
            writers = [writer(path, row) for row in (0, 1)]
            for process in writers:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in writers:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            for row, process in enumerate(writers):
                assert process.stdout is not None
                lines = [process.stdout.readline() for _ in range(5 + 3 * turn)]
                process.kill()
                lines += process.stdout.readlines()
                process.communicate()
                for tag, version in (line.split() for line in lines if line.endswith("\n")):
                    assert int(version) == acknowledged.get((tag, row), int(version) - 1) + 1
                    acknowledged[tag, row] = int(version)
            kept = recount(path)
            for place, version in acknowledged.items():
                assert kept[place] in (version, version + 1)
                acknowledged[place] = kept[place]
        assert min(acknowledged.values()) > 10

    def test_many_processes_at_once_give_exact_versions(self, path: Path, store: SQLiteStore) -> None:
        manager = Manager.create(store, "job", num_tasks=6, tags=("own", "shared"))

        def work(row: int) -> None:
            own = Manager.open(store, "job", task_index=row)
            for number in range(100):
                own.progress("own", number, 100)
                store.write(own.ref, Write(tag="shared", task_index=0, status=5, event_id=new_event_id()))
            own.set_state("own", FINISHED)

        waits = [forked(lambda row=row: work(row)) for row in range(6)]  # type: ignore[misc]
        for wait in waits:
            wait()
        assert recount(path) == {("shared", 0): 600, **{("own", row): 101 for row in range(6)}}
        assert manager.get_state("own").finished
