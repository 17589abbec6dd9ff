"""Firestore under a prefork worker that makes new children all the time: nothing hangs, nothing stays behind."""

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
    """A worker's main process and its children, as the kernel sees them."""

    def __init__(self, main: int) -> None:
        self.main = main

    def children(self) -> set[int]:
        """Give the other processes of the worker's session, alive or not reaped."""
        return {int(each.name) for each in Path("/proc").glob("[0-9]*") if self._is_ours(each)} - {self.main}

    def use_grpc(self, pid: int) -> bool:
        """Whether a process has threads of gRPC's."""
        names = [self._read(each / "comm") for each in Path(f"/proc/{pid}/task").glob("*")]
        return any(name.startswith(GRPC_THREADS) for name in names)

    def _is_ours(self, process: Path) -> bool:
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


def lease(store) -> int:
    """Give until when the worker counts as alive."""
    return max((each.lease_until for each in store.list_workers() if ":" in each.worker_id), default=0)


@pytest.mark.parametrize(
    ("tasks", "hanging", "dying"),
    [pytest.param(120, 1, 1, id="short"), pytest.param(2_000, 10, 10, id="long", marks=pytest.mark.full)],
)
@pytest.mark.timeout(900)
def test_children_come_and_go_and_every_cell_is_right(
    setting, worker, eventually, key, tasks, hanging, dying, record_property
):
    tracked, store, processes = setting.tracked, setting.tracked.states.store, Processes(worker.process.pid)
    bodies = [tracked.act_early.s("take_too_long", f"{key}.{each}").set(time_limit=1) for each in range(hanging)]
    bodies += [tracked.act_early.s("be_killed_first", f"{key}-{each}") for each in range(dying)]
    bodies += [tracked.succeed.s(row) for row in range(tasks - len(bodies))]
    spread = [bodies[row * 7 % tasks].clone().set(queue="recycled") for row in range(tasks)]
    callback = tracked.callback.s().set(queue="recycled")
    job = tracked.states.submit(spread, on_success=callback, on_failure=callback, on_settled=callback)
    seen, renewed = set(), set()
    eventually(lambda: any(processes.use_grpc(child) for child in processes.children()))
    with ThreadPoolExecutor() as threads:
        settled = threads.submit(job.wait, 800)
        while wait([settled], LOOK_EVERY).not_done:
            seen.update(processes.children())
            renewed.add(lease(store))
            assert not processes.use_grpc(processes.main)
    eventually(lambda: len(tracked.notes(f"callback.{job.id}")) == 2)
    states = job.list_states()
    assert Counter(state.status for state in states) == {
        Status.FINISHED: tasks - hanging - dying,
        Status.TIMED_OUT: hanging,
        Status.LOST: dying,
    }
    assert all(state.attempt == 1 or state.status == Status.TIMED_OUT for state in states)  # killed before it began
    assert sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}")) == ["failure", "settled"]
    record_property("prefork", f"{len(seen)} children seen, {len(renewed)} leases seen")
    assert len(renewed) > 2
    assert len(seen) >= tasks / TASKS_A_CHILD / 2, "children were not recycled"
    assert worker.stop() == 0
    assert processes.children() == set()
