"""Time that a job needs to recover from SIGKILL: this package compared with Celery's own redelivery and chord.

    PYTHONPATH=tests:. python -m benchmarks.recovery [cases NAME …]

Each case has its own Redis, two prefork workers and eight tasks of 1 s with late acknowledgement. One worker is killed
with its children while it runs two tasks. The output contains the seconds from the kill until both tasks have begun
again, and until the callback or chord body has run. They are ``inf`` if that takes more than ``CAP`` seconds.
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
    """Submit the tasks as a chord."""
    chord([plain.s(row) for row in range(TASKS)])(after.s())


def submit_tracked() -> None:
    """Submit the tasks as a tracked job."""
    states.submit([tracked.s(row) for row in range(TASKS)], on_success=after.s())


CASES = {
    "Celery chord, visibility timeout 4 s": ("plain", {"RECOVERY_VISIBILITY": "4"}),
    "Celery chord, visibility timeout 1 h (default)": ("plain", {}),
    "statemanager, lease 30 s, sweep 15 s (default)": ("tracked", {}),
    "statemanager, lease 6 s, sweep 3 s": ("tracked", {"RECOVERY_LEASE": "6 3"}),
}


def measure(kind: str) -> tuple[float, float]:
    """Run one case, configured by the environment. Return both times in seconds."""
    workers = [_worker(number) for number in range(2)]
    try:
        {"plain": submit_plain, "tracked": submit_tracked}[kind]()
        victim = wait_for(lambda: next((each for each in workers if len(_begun_by(each)) == 2), None), 30)
        processes.kill(victim.pid)
        killed = time.time()
        held = _begun_by(victim)
        begun_again = wait_for(lambda: _begun_again(held, killed), CAP)
        called = wait_for(lambda: notes("after"), max(0.0, killed + CAP - time.time()))
        return (begun_again or float("inf")) - killed, (called[0][0] if called else float("inf")) - killed
    finally:
        for worker in workers:
            processes.kill(worker.pid)
            worker.wait()


def _begun_by(worker: subprocess.Popen[bytes]) -> set[str]:
    return {text for _, pid, text in notes("begun") if pid == worker.pid}


def _begun_again(held: set[str], killed: float) -> float | None:
    """Return when the last of the tasks that the victim held has begun again, or None."""
    begun = {text: when for when, _, text in notes("begun") if when > killed}
    return max(begun[text] for text in held) if held <= begun.keys() else None


def wait_for(probe: Callable[[], Any], seconds: float) -> Any:
    """Return the first truthy result of ``probe``, or its last result after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (result := probe()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return result


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
    assert wait_for(lambda: b" ready." in log.read_bytes(), 60), log.read_text()
    return worker


def main() -> None:
    """Measure each case in new processes and print the results."""
    from servers import running_redis

    names = sys.argv[2:] or [*CASES]
    for name, (kind, options) in ((name, CASES[name]) for name in names):
        times = []
        for _ in range(1 if "1 h" in name else REPEATS):
            with running_redis() as server, tempfile.TemporaryDirectory() as home:
                place = {"RECOVERY_HOME": home, "RECOVERY_REDIS": server.url.rpartition("/")[0], **options}
                command = [sys.executable, "-m", "benchmarks.recovery", kind]
                done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, check=True)
                times.append([float(each) for each in done.stdout.split()[-2:]])
        begun_again, called = (" ".join(f"{each:6.1f}" for each in sorted(column)) for column in zip(*times))
        print(f"{name:48} begun again: {begun_again}   callback: {called}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] != "cases":
        print(*measure(sys.argv[1]))
    else:
        main()
