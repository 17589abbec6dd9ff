"""How long a job stands still after SIGKILL: this package beside Celery's own redelivery and chord.

    PYTHONPATH=tests:. python -m benchmarks.recovery [cases NAME …]

Each case: a Redis of its own, two prefork workers, eight tasks of 1 s that are acked late; a worker is killed with its
children while it runs two of them. Printed: seconds from the kill until the last of the two has begun again, and until
what follows the job (callback, chord body) has run. A case that has not come to its end after ``CAP`` is given up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from celery import chord

from benchmarks.recovery_app import HOME, after, notes, plain, states, tracked
from celery_statemanager.testing import processes

TASKS = 8
CAP = 150.0
REPEATS = 3


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
        victim = until(lambda: next((each for each in workers if len(_begun_by(each)) == 2), None), 30)
        processes.kill(victim.pid)
        killed = time.time()
        held = _begun_by(victim)
        again = until(lambda: _again(held, killed), CAP)
        done = until(lambda: notes("after"), max(0.0, killed + CAP - time.time()))
        return (again or float("inf")) - killed, (done[0][0] if done else float("inf")) - killed
    finally:
        for worker in workers:
            processes.kill(worker.pid)
            worker.wait()


def _begun_by(worker: subprocess.Popen[bytes]) -> set[str]:
    return {text for _, pid, text in notes("begun") if pid == worker.pid}


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
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "benchmarks.recovery_app",
        "worker",
        "-c",
        "2",
        "-n",
        f"{number}@here",
    ]
    log = HOME / f"{number}.log"
    with log.open("wb") as output:
        worker = subprocess.Popen([*command, "-l", "INFO"], stdout=output, stderr=subprocess.STDOUT)
    assert until(lambda: b" ready." in log.read_bytes(), 60), log.read_text()
    return worker


def main() -> None:
    """Measure each case in processes of its own and print."""
    from servers import running_redis

    wanted = sys.argv[2:] or [*CASES]
    for name, (kind, more) in ((name, CASES[name]) for name in wanted):
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
    if sys.argv[1:2] and sys.argv[1] != "cases":
        print(*measure(sys.argv[1]))
    else:
        main()
