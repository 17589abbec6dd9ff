"""The workers of a run: started, killed, paused, and none of them left."""

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
READY = 60.0
STOPPED = 30.0


class Crew:
    """``SIZE`` workers, replaced when they were killed."""

    def __init__(self, place: Place, pool: str) -> None:
        self._place = place
        self._pool = pool
        self._made = 0
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._logs: dict[int, Path] = {}
        self._seen: list[psutil.Process] = []

    def muster(self) -> None:
        """Be complete and ready."""
        for pid, worker in [*self._workers.items()]:
            if worker.poll() is not None:
                del self._workers[pid]
        while len(self._workers) < SIZE:
            self._start()
        deadline = time.monotonic() + READY
        while not all(" ready." in self._logs[pid].read_text() for pid in self._workers):
            assert time.monotonic() < deadline, f"no worker within {READY} s: {[*self._logs.values()]}"
            time.sleep(0.05)

    def kill(self, number: int) -> None:
        """Kill one with its children, and start another."""
        pid = sorted(self._workers)[number % len(self._workers)]
        self._see(pid)
        processes.kill(pid)
        self._workers.pop(pid).wait()
        self._start()

    def pause(self, number: int, seconds: float) -> None:
        """Stop one with its children for so many seconds."""
        with processes.paused(sorted(self._workers)[number % len(self._workers)]):
            time.sleep(seconds)

    def dismiss(self) -> None:
        """Stop all, warmly, and kill who does not."""
        for pid, worker in self._workers.items():
            self._see(pid)
            worker.terminate()
        for pid, worker in self._workers.items():
            with suppress(subprocess.TimeoutExpired):
                worker.wait(STOPPED)
                continue
            processes.kill(pid)
            worker.wait()
            raise AssertionError(f"worker {pid} did not stop within {STOPPED} s: {self._logs[pid].read_text()[-3000:]}")
        self._workers.clear()

    def left_behind(self) -> list[psutil.Process]:
        """Give the processes of workers that are gone."""
        lives = []
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    lives.append(process)
        return lives

    def _see(self, pid: int) -> None:
        self._seen += processes.family(pid)

    def _start(self) -> None:
        self._made += 1
        log = self._place.home / f"worker-{self._made}.log"
        command = [sys.executable, "-m", "celery", "-A", "chaos.app", "worker", "-P", self._pool, "-c", "2"]
        command += ["-n", f"chaos-{self._made}@test", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as output:
            worker = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                env={**os.environ, **self._place.far},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._workers[worker.pid] = worker
        self._logs[worker.pid] = log
