"""Firestore in a prefork worker that recycles its children: nothing hangs and no process remains."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from workers import Worker

from celery_statemanager import Status

CHILDREN = 4
TASKS_A_CHILD = 5
LOOK_EVERY = 0.25
GRPC_THREADS = ("grpc", "event_engine", "resolver-execut", "default-executo")


class Processes:
    """The main process of a worker and its children, read from /proc."""

    def __init__(self, main: int) -> None:
        self.main = main

    def children(self) -> set[int]:
        """Return the other processes of the worker's session, alive or not reaped."""
        return {int(each.name) for each in Path("/proc").glob("[0-9]*") if self._is_in_session(each)} - {self.main}

    def uses_grpc(self, pid: int) -> bool:
        """Return whether a process has gRPC threads."""
        names = [self._read(each / "comm") for each in Path(f"/proc/{pid}/task").glob("*")]
        return any(name.startswith(GRPC_THREADS) for name in names)

    def _is_in_session(self, process: Path) -> bool:
        stat = self._read(process / "stat").rpartition(")")[2].split()
        return len(stat) > 3 and int(stat[3]) == self.main

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""


@pytest.fixture(scope="module")
def setting(settings):
    return settings("redis-firestore")


@pytest.fixture
def worker(setting):
    recycling = f"--max-tasks-per-child={TASKS_A_CHILD}"
    worker = Worker(setting.environment, "prefork", "recycled", recycling, concurrency=CHILDREN)
    yield worker
    worker.stop()


def latest_lease_end(store) -> int:
    """Return when the last lease of any worker ends."""
    return max((each.lease_until for each in store.list_workers() if ":" in each.worker_id), default=0)


@pytest.mark.parametrize(
    ("tasks", "hung", "killed"),
    [pytest.param(120, 1, 1, id="short"), pytest.param(600, 5, 5, id="long", marks=pytest.mark.full)],
)
@pytest.mark.timeout(900)
def test_recycled_children_write_every_cell_correctly(
    setting, worker, eventually, key, tasks, hung, killed, record_property
):
    tracked, store, processes = setting.tracked, setting.tracked.states.store, Processes(worker.process.pid)
    bodies = [tracked.act_early.s("take_too_long", f"{key}.{each}").set(time_limit=1) for each in range(hung)]
    bodies += [tracked.act_early.s("kill_itself_first", f"{key}-{each}") for each in range(killed)]
    bodies += [tracked.succeed.s(row) for row in range(tasks - len(bodies))]
    spread = [bodies[row * 7 % tasks].clone().set(queue="recycled") for row in range(tasks)]
    callback = tracked.callback.s().set(queue="recycled")
    job = tracked.states.submit(spread, on_success=callback, on_failure=callback, on_settled=callback)
    seen, renewed = set(), set()
    eventually(lambda: any(processes.uses_grpc(child) for child in processes.children()))
    with ThreadPoolExecutor() as threads:
        settled = threads.submit(job.wait, 800)
        while wait([settled], LOOK_EVERY).not_done:
            seen.update(processes.children())
            renewed.add(latest_lease_end(store))
            assert not processes.uses_grpc(processes.main)
    eventually(lambda: len(tracked.notes(f"callback.{job.id}")) == 2)
    states = job.list_states()
    assert Counter(state.status for state in states) == {
        Status.FINISHED: tasks - hung - killed,
        Status.TIMED_OUT: hung,
        Status.LOST: killed,
    }
    assert all(state.attempt == 1 or state.status == Status.TIMED_OUT for state in states)  # killed before it began
    assert sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}")) == ["failure", "settled"]
    record_property("prefork", f"{len(seen)} children seen, {len(renewed)} leases seen")
    assert len(renewed) > 2
    assert len(seen) >= tasks / TASKS_A_CHILD / 2, "the children were not recycled"
    assert worker.stop() == 0
    assert processes.children() == set()
