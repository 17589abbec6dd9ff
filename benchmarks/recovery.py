"""How long a job stands still after SIGKILL: this package beside Celery's own redelivery and chord.

    PYTHONPATH=tests:. python -m benchmarks.recovery

Each case: a Redis of its own, two prefork workers, eight tasks of 1 s that are acked late; the worker that runs the
first is killed with its children. Printed: seconds from the kill until the last task that it held has begun again,
and until what follows the job (callback, chord body) has run. A case that has not come to its end after ``CAP`` is
given up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery, chord

from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.testing import processes

HOME = Path(os.environ.get("RECOVERY_HOME", "/nonexistent"))
REDIS = os.environ.get("RECOVERY_REDIS", "redis://127.0.0.1:1")
VISIBILITY = os.environ.get("RECOVERY_VISIBILITY", "")
LEASE, INTERVAL = os.environ.get("RECOVERY_LEASE", "30 15").split()
TASKS = 8
CAP = 150.0
REPEATS = 3

app = Celery("recovery", broker=f"{REDIS}/0", backend=f"{REDIS}/1")
app.conf.update(
    statemanager_store_url=f"{REDIS}/2",
    statemanager_lease=float(LEASE),
    statemanager_sweep_interval=float(INTERVAL),
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": float(VISIBILITY)} if VISIBILITY else {},
)
states = StateManager(app)


def note(text: str) -> None:
    """Leave a line: when, in which worker, what."""
    with (HOME / "notes").open("a") as file:
        file.write(f"{time.time()} {os.getppid()} {text}\n")


def notes(what: str) -> list[tuple[float, int, str]]:
    """Give the lines that begin so."""
    path = HOME / "notes"
    lines = [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(when), int(pid), text) for when, pid, text in lines if text.startswith(what)]


@app.task(acks_late=True)
def plain(row: int) -> None:
    """Run for a second."""
    note(f"begun {row}")
    time.sleep(1)


@app.task(base=StatefulTask, acks_late=True, tag="work")
def tracked(row: int) -> None:
    """Run for a second."""
    note(f"begun {row}")
    time.sleep(1)


@app.task
def after(*_: Any) -> None:
    """Follow the job."""
    note("after")


def submit_plain() -> None:
    """Celery's own way."""
    chord([plain.s(row) for row in range(TASKS)])(after.s())


def submit_tracked() -> None:
    """Ours."""
    states.submit([tracked.s(row) for row in range(TASKS)], on_success=after.s())


CASES = {
    "Celery chord, visibility timeout 4 s": ("plain", {"RECOVERY_VISIBILITY": "4"}),
    "Celery chord, visibility timeout 1 h (default)": ("plain", {}),
    "statemanager, lease 30 s, sweep 15 s (default)": ("tracked", {}),
    "statemanager, lease 6 s, sweep 3 s": ("tracked", {"RECOVERY_LEASE": "6 3"}),
}


def measure(kind: str) -> tuple[float, float]:
    """Play one case in this process's environment; give the two times, ``inf`` for what did not come."""
    workers = [_worker(number) for number in range(2)]
    try:
        {"plain": submit_plain, "tracked": submit_tracked}[kind]()
        _, pid, _ = until(lambda: notes("begun"), 30)[0]
        victim = next(worker for worker in workers if worker.pid == pid)
        processes.kill(victim.pid)
        killed = time.time()
        held = {text for when, pid, text in notes("begun") if pid == victim.pid and when > killed - 1}
        again = until(lambda: _again(held, killed), CAP)
        done = until(lambda: notes("after"), max(0.0, killed + CAP - time.time()))
        return (again or float("inf")) - killed, (done[0][0] if done else float("inf")) - killed
    finally:
        for worker in workers:
            processes.kill(worker.pid)
            worker.wait()


def _again(held: set[str], killed: float) -> float | None:
    """When the last of those that the victim held has begun again."""
    begun = {text: when for when, _, text in notes("begun") if when > killed}
    return max(begun[text] for text in held) if held <= begun.keys() else None


def until(probe: Callable[[], Any], seconds: float) -> Any:
    """Ask until there is something, for so many seconds at most; give it, or what there is."""
    deadline = time.monotonic() + seconds
    while not (found := probe()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _worker(number: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.recovery", "worker", "-c", "2", "-n", f"{number}@here"]
    log = HOME / f"{number}.log"
    with log.open("wb") as output:
        worker = subprocess.Popen([*command, "-l", "INFO"], stdout=output, stderr=subprocess.STDOUT)
    assert until(lambda: b" ready." in log.read_bytes(), 60), log.read_text()
    return worker


def main() -> None:
    """Measure each case in processes of its own and print."""
    from servers import running_redis

    for name, (kind, more) in CASES.items():
        times = []
        for _ in range(1 if "1 h" in name else REPEATS):
            with running_redis() as server, tempfile.TemporaryDirectory() as home:
                place = {"RECOVERY_HOME": home, "RECOVERY_REDIS": server.url.rpartition("/")[0], **more}
                command = [sys.executable, "-m", "benchmarks.recovery", kind]
                told = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, check=True)
                times.append([float(each) for each in told.stdout.split()[-2:]])
        again, done = (" ".join(f"{each:6.1f}" for each in sorted(column)) for column in zip(*times))
        print(f"{name:48} begun again: {again}   followed: {done}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1]))
    else:
        main()
