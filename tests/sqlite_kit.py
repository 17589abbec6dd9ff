"""Helpers for tests of the SQLite store: direct access to its file, and forked processes that use it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from celery_statemanager import aggregate, open_store
from celery_statemanager.records import JobKey, JobRef, Tally, Write, new_event_id
from celery_statemanager.stores import steps
from celery_statemanager.stores.kinds import COUNTED
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.cells import COLUMNS, cell_of
from celery_statemanager.stores.sqlite.transaction import SQLiteTransaction
from celery_statemanager.testing.kit import PATIENCE, Grid
from celery_statemanager.transitions import tally_of


def opened(path: Path, **options: object) -> SQLiteStore:
    """Return a store on a file."""
    store = open_store(f"sqlite:///{path}", **options)  # type: ignore[arg-type]
    assert isinstance(store, SQLiteStore)
    return store


def raw(path: Path, **options: object) -> closing[sqlite3.Connection]:
    """Return a plain connection to a file."""
    return closing(sqlite3.connect(path, isolation_level=None, **options))  # type: ignore[call-overload]


def open_files(path: Path) -> int:
    """Return how many files of a database this process has open, its log and shared memory included."""
    links = (os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
    return sum(link.startswith(str(path)) for link in links)


def forked(work: Callable[[], object]) -> Callable[[], None]:
    """Run a function in a forked child; return a function that waits for its success."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns about threads, which are intended here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not run pytest's shutdown
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
    """Run a function in a forked child and wait for its success."""
    forked(work)()


@contextmanager
def in_another_thread(call: Callable[[Callable[..., None]], object]) -> Iterator[None]:
    """Keep another thread inside a call until the block ends.

    Args:
        call: the call; it receives a function that it must call, with any arguments, and that waits there.
    """
    entered, leave = threading.Event(), threading.Event()

    def wait_here(*_: object) -> None:
        entered.set()
        leave.wait(PATIENCE)

    holder = threading.Thread(target=call, args=(wait_here,), daemon=True)
    holder.start()
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        leave.set()
        holder.join(PATIENCE)


def held_by_another_thread(lock: AbstractContextManager[Any]) -> AbstractContextManager[None]:
    """Let another thread hold a lock until the block ends."""

    def hold(wait_here: Callable[[], None]) -> None:
        with lock:
            wait_here()

    return in_another_thread(hold)


def recount(path: Path) -> dict[tuple[str, int], int]:
    """Check everything derived from cells against the cells; return the versions by tag and row."""
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
                    for row, cell in cells.items():
                        total = total.plus(tally_of(cell, is_last=aggregate.ends_row(job, name, row)))
                    assert Tally(*tally) == total
                    missing = [row for low, high in gaps for row in range(low, high + 1)]
                    assert missing == sorted(set(aggregate.expected_rows(job, name)) - cells.keys())
                else:
                    assert gaps.fetchall() == []
                    assert Tally(*tally) == Tally()
    return versions


def fill(store: SQLiteStore, ref: JobRef, rows: int) -> None:
    """Write many cells as ``write`` does, but in one transaction."""

    def write(db: sqlite3.Connection) -> None:
        for row in range(rows):
            request = Write(tag="a", task_index=row, status=2 + row % 90, event_id=new_event_id(), message=f"row {row}")
            steps.write(SQLiteTransaction.read(db, store._jobs, ref, store.now(), ("a", row)), request)

    store._pool.write(write)


def path_of(grid: Grid) -> Path:
    """Return the path of a grid's file."""
    assert isinstance(grid.store, SQLiteStore)
    return Path(grid.store._path)


def instruction_count(grid: Grid, work: Callable[[], object]) -> int:
    """Return how many instructions SQLite executes for a call, in units of ten."""
    store, counts = grid.store, [0]
    assert isinstance(store, SQLiteStore)

    def count() -> int:
        counts[0] += 1
        return 0

    work()
    connections = (store._pool.read(lambda db: db), store._pool.write(lambda db: db))
    for db in connections:
        db.set_progress_handler(count, 10)
    work()
    for db in connections:
        db.set_progress_handler(None, 10)
    return counts[0]
