"""Audit a folder, kill the worker with -9 in the middle, and show what happens. Run by ``make demo-kill``.

A plain chord with as many tasks runs beside it, and its worker is killed at the same moment.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time

from celery.result import AsyncResult

from celery_statemanager import Job
from examples.app import HOME, app
from examples.audit import audit, files
from examples.chord_migration import before
from examples.chord_migration.compare import PATIENCE, wait_until
from examples.demo import CELERY, command
from examples.workers import Worker

LEASE = 5.0
"""Seconds after the kill until the display shows that the worker is dead. The default of the package is 30."""

SECONDS = 2.5
"""Duration of a task of the chord."""

SLOWED = 48.0
"""Additional seconds of the audit, so that the kill happens in the middle of it on any machine."""


def main() -> int:
    """Run the demo. Return 0 if the audit is complete."""
    options = parse_arguments()
    print("This demo runs two jobs, each with its own Celery worker: a tracked folder audit and a plain chord.")
    print("It kills both workers with kill -9, and starts new workers some seconds later.\n", flush=True)
    folder = options.input or sysconfig.get_paths()["stdlib"]
    try:
        job = audit(folder, options.shards)
    except (OSError, ValueError) as error:
        print(f"demo-kill: {error}", file=sys.stderr)
        return 2
    result = before.start([f"text {number}" for number in range(options.shards)], SECONDS)
    os.environ.setdefault("EXAMPLES_PACE", str(SLOWED / max(1, sum(1 for _ in files(folder)))))
    workers = start_workers()
    with subprocess.Popen([*CELERY, "monitor-state", job.id, *options.monitor]) as monitor:
        try:
            wait_until(lambda: has_begun(job, result), PATIENCE)
            done = done_of(job, result)
            for worker in workers:
                worker.kill()
            killed = time.monotonic()
            time.sleep(LEASE + 1)  # the display shows that no worker is alive
            workers = start_workers()
            is_settled = wait_until(lambda: job.settled, 10 * PATIENCE)
            settled_after = time.monotonic() - killed
            monitor.wait(30)
            wait_until(result.ready, options.bound - (time.monotonic() - killed))
            print_result(job, result, done, settled_after if is_settled else None, options.bound)
        finally:
            monitor.terminate()
            for worker in workers:
                worker.stop()
    return 0 if is_settled and not job.summary(indexes=False).failed else 1


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="demo-kill", description=__doc__)
    parser.add_argument("--input", help="the folder to audit (default: this Python's standard library)")
    parser.add_argument("--shards", type=int, default=16, help="tasks of each job (default: 16)")
    parser.add_argument(
        "--bound", type=float, default=60.0, help="seconds to wait for the chord after the kill (default: 60)"
    )
    options = parser.parse_args()
    options.monitor = [] if sys.stdout.isatty() else ["--format", "table"]
    return options


def start_workers() -> list[Worker]:
    """Start a worker for the audit and one for the chord."""
    return [
        Worker("examples", HOME / "worker.log", EXAMPLES_LEASE=str(LEASE)),
        Worker(before.__name__, before.HOME / "worker.log"),
    ]


def has_begun(job: Job, result: AsyncResult) -> bool:
    """Return whether more than half of the audit's stages, and at least two tasks of the chord, are done."""
    tracked, chord = done_of(job, result)
    return chord >= 2 and (tracked > job.num_tasks or job.settled)


def done_of(job: Job, result: AsyncResult) -> tuple[int, int]:
    """Return how many stages of the audit, and how many tasks of the chord, are done."""
    return job.summary(indexes=False).finished, result.parent.completed_count()


def print_result(
    job: Job, result: AsyncResult, done: tuple[int, int], settled_after: float | None, bound: float
) -> None:
    """Print both jobs side by side."""
    now, stages, tasks = done_of(job, result), job.summary(indexes=False).expected, job.num_tasks
    never = f"not after {bound:.0f} s"
    rows = [
        ("", "tracked audit", "plain chord"),
        ("done when killed", f"{done[0]} of {stages} stages", f"{done[1]} of {tasks} tasks"),
        (
            "complete",
            never if settled_after is None else f"after {settled_after:.0f} s",
            "yes" if result.ready() else never,
        ),
        ("done now", f"{now[0]} of {stages} stages", f"{now[1]} of {tasks} tasks"),
        ("state", job.phase, result.state),
    ]
    print()
    for name, tracked, chord in rows:
        print(f"{name:18}{tracked:18}{chord}")
    print("\nThe chord waits for the results of tasks that were lost with its worker. They never arrive.")
    print(f"Try next: {command(f'show-state {job.id}')}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    app.set_default()
    sys.exit(main())
