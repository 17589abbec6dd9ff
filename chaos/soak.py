"""Run mixed jobs for hours and check that nothing grows: ``python -m chaos.soak --place redis-redis --hours 2``.

Every round submits some jobs at the same time, kills the younger one of two workers while they run, checks the
guarantees, runs the failed rows again and collects garbage. The older worker, the servers and this process live as long
as the run.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from celery_statemanager import collect_garbage
from chaos.growth import Growth
from chaos.places import NAMES, Place, load_environment, running_place
from chaos.run import MixedJob
from chaos.workers import Workers

JOBS = 4
ROWS = 40
KILL_AFTER = (2.0, 15.0)
"""Seconds after the submission, at random, after which a worker is killed."""

KEPT = 120.0
"""Seconds for which a job is kept after its last write."""


def main() -> int:
    """Run the soak and print what has grown. Return 1 if a guarantee was violated or something has grown."""
    parser = argparse.ArgumentParser(prog="chaos.soak", description="Run mixed jobs for hours; nothing may grow.")
    parser.add_argument("--place", choices=NAMES, default="redis-redis")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", default="1")
    options = parser.parse_args()
    violations, rounds, end = 0, 0, time.monotonic() + options.hours * 3600
    with running_place(options.place) as place:
        load_environment(place)
        workers = Workers(place, "prefork")
        try:
            workers.ensure_ready()
            growth = Growth(place, workers.oldest)
            while time.monotonic() < end:
                rounds += 1
                start = time.monotonic()
                for violation in _round(place, workers, random.Random(f"{options.seed}/{rounds}")):
                    print(f"round {rounds}: {violation}", flush=True)
                    violations += 1
                growth.sample()
                print(f"round {rounds}: {time.monotonic() - start:.0f} s; {growth.latest()}", flush=True)
        finally:
            workers.stop()
    print(
        f"{options.place}: {rounds * JOBS} jobs, {rounds} kills, {violations} violations\n{growth.table()}", flush=True
    )
    return 1 if violations or growth.grown() else 0


def _round(place: Place, workers: Workers, rng: random.Random) -> Iterator[str]:
    """Run jobs with one kill. Yield the violated guarantees."""
    from chaos import app  # reads environment variables that the caller sets first

    with ExitStack() as stack:
        jobs = [stack.enter_context(MixedJob.submit(rng, ROWS)) for _ in range(JOBS)]
        time.sleep(rng.uniform(*KILL_AFTER))
        workers.kill(-1)
        for mixed in jobs:
            mixed.wait()
    for mixed in jobs:
        yield from mixed.violations()
    again = [mixed for mixed in jobs if rng.random() < 0.5 and mixed.rerun()]
    for mixed in again:
        mixed.wait()
        yield from (f"after the rerun: {each}" for each in mixed.violations(streamed=False))
    workers.ensure_ready()
    collect_garbage(app.states.store, tombstone_age=KEPT / 2, delete_age=KEPT)
    for mixed in jobs:
        (place.home / f"notes.{mixed.job.id}").unlink()


if __name__ == "__main__":
    sys.exit(main())
