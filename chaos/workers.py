"""The workers of a run: start, kill, pause and stop them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from celery_statemanager.testing import processes
from chaos.places import Place

SIZE = 2
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


class Workers:
    """``SIZE`` workers. A killed worker is replaced."""

    def __init__(self, place: Place, pool: str) -> None:
        self._place = place
        self._pool = pool
        self._started = 0
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._logs: dict[int, Path] = {}
        self._processes: list[psutil.Process] = []

    def ensure_ready(self) -> None:
        """Start missing workers and wait until all are ready."""
        for pid, worker in [*self._workers.items()]:
            if worker.poll() is not None:
                del self._workers[pid]
        while len(self._workers) < SIZE:
            self._start()
        deadline = time.monotonic() + READY_TIMEOUT
        while starting := [pid for pid in self._workers if " ready." not in self._first_lines(pid)]:
            assert time.monotonic() < deadline, (
                f"a worker is not ready after {READY_TIMEOUT} s: {[self._logs[pid] for pid in starting]}"
            )
            time.sleep(0.05)

    def _first_lines(self, pid: int) -> str:
        with self._logs[pid].open(errors="replace") as log:
            return log.read(20_000)

    @property
    def oldest(self) -> int:
        """The process id of the worker that has run for the longest time."""
        return next(iter(self._workers))

    def kill(self, number: int) -> None:
        """Kill a worker with its children and start another one. Number 0 is the oldest worker."""
        pid = [*self._workers][number % len(self._workers)]
        self._record_processes(pid)
        processes.kill(pid)
        self._workers.pop(pid).wait()
        self._start()

    def pause(self, number: int, seconds: float) -> None:
        """Pause a worker with its children for ``seconds``."""
        with processes.paused([*self._workers][number % len(self._workers)]):
            time.sleep(seconds)

    def stop(self) -> None:
        """Stop all workers by a warm shutdown. Raises: AssertionError if one does not stop and is killed."""
        for pid, worker in self._workers.items():
            self._record_processes(pid)
            worker.terminate()
        for pid, worker in self._workers.items():
            with suppress(subprocess.TimeoutExpired):
                worker.wait(STOP_TIMEOUT)
                continue
            processes.kill(pid)
            worker.wait()
            log = self._logs[pid].read_text()[-3000:]
            raise AssertionError(f"worker {pid} did not stop within {STOP_TIMEOUT} s: {log}")
        self._workers.clear()

    def leftovers(self) -> list[psutil.Process]:
        """Return the processes of killed or stopped workers that still run."""
        running = []
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        return running

    def _record_processes(self, pid: int) -> None:
        self._processes += processes.family(pid)

    def _start(self) -> None:
        self._started += 1
        log = self._place.home / f"worker-{self._started}.log"
        command = [sys.executable, "-m", "celery", "-A", "chaos.app", "worker", "-P", self._pool, "-c", "2"]
        command += ["-n", f"chaos-{self._started}@test", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as output:
            worker = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                env={**os.environ, **self._place.worker_environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._workers[worker.pid] = worker
        self._logs[worker.pid] = log
