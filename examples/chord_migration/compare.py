"""Run the chord and the tracked job side by side, kill both workers with -9, and start new ones."""

import argparse
import sys
import time
from collections.abc import Callable

from examples.chord_migration import after, before
from examples.workers import Worker

PATIENCE = 90.0
"""Seconds to wait for the tracked job."""


def main() -> int:
    """Compare. Return 0 if the tracked job has ended with the right result."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each task")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds to wait for the chord after the kill")
    options = parser.parse_args()
    texts = [f"text number {number}" for number in range(options.tasks)]
    modules = {"chord": before, "tracked job": after}
    workers = {name: Worker(module.__name__, module.HOME / "worker.log") for name, module in modules.items()}
    try:
        result, job = before.start(texts, options.seconds), after.start(texts, options.seconds)
        done = {"chord": result.parent.completed_count, "tracked job": lambda: job.summary(indexes=False).finished}
        wait_until(lambda: min(each() for each in done.values()) >= 2, PATIENCE)
        for worker in workers.values():
            worker.kill()
        killed = time.monotonic()
        print("killed both workers with -9, and starting new ones", flush=True)
        for name, module in modules.items():
            workers[name] = Worker(module.__name__, module.HOME / "worker.log")
        ready = {"chord": result.ready, "tracked job": lambda: job.settled}
        ended: dict[str, float] = {}

        def note() -> bool:
            for name, is_ready in ready.items():
                if name not in ended and is_ready():
                    ended[name] = time.monotonic() - killed
            return "tracked job" in ended and ("chord" in ended or time.monotonic() > killed + options.bound)

        wait_until(note, PATIENCE)
        for name in modules:
            how = (
                f"complete after {ended[name]:.0f} s" if name in ended else f"not complete after {options.bound:.0f} s"
            )
            print(f"{name:12} {done[name]()} of {options.tasks} tasks done, {how}", flush=True)
        return 0 if "tracked job" in ended and job.body_result(10) == 3 * options.tasks else 1
    finally:
        for worker in workers.values():
            worker.stop()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition is true. Return False after that many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


if __name__ == "__main__":
    sys.exit(main())
