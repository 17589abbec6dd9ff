"""Writers that are killed, and writers that compete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlite_kit import forked, opened, recount

from celery_statemanager.manager import Manager
from celery_statemanager.records import Write, new_event_id
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.testing.kit import FINISHED

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
    def test_a_writer_killed_during_a_write_leaves_a_consistent_file(self, path: Path) -> None:
        with opened(path) as store:
            Manager.create(store, "job", num_tasks=3, tags=("a", "b"))
        acknowledged: dict[tuple[str, int], int] = {}
        for repetition in range(8):
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
                lines = [process.stdout.readline() for _ in range(5 + 3 * repetition)]
                process.kill()
                lines += process.stdout.readlines()
                process.communicate()
                for tag, version in (line.split() for line in lines if line.endswith("\n")):
                    assert int(version) == acknowledged.get((tag, row), int(version) - 1) + 1
                    acknowledged[tag, row] = int(version)
            stored = recount(path)
            for place, version in acknowledged.items():
                assert stored[place] in (version, version + 1)
                acknowledged[place] = stored[place]
        assert min(acknowledged.values()) > 10

    def test_concurrent_processes_produce_exact_versions(self, path: Path, store: SQLiteStore) -> None:
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
