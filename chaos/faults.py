"""The faults of a round, drawn from its seed so that the round can be repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

from celery_statemanager.integration.submission.job import Job
from chaos.places import Place
from chaos.workers import SIZE, Workers

MIN_FAULTS, MAX_FAULTS = 3, 6
LONGEST_PAUSE = 5.0
"""Seconds. Longer than the lease, so that a resumed worker may have been declared lost."""

Fault = tuple[float, str, Callable[[Job], object]]
"""Seconds to wait before the fault, its name and a function that injects it while a job runs."""


def draw(rng: random.Random, place: Place, workers: Workers) -> list[Fault]:
    """Return the faults of a round."""
    kinds = ["kill", "kill", "pause", "flush", "hold", *place.proxies, *place.own_faults]
    if place.make_unavailable is not None:
        kinds.append("outage")
    return [
        (rng.uniform(0.2, 1.2), *_fault(rng, rng.choice(kinds), place, workers))
        for _ in range(rng.randint(MIN_FAULTS, MAX_FAULTS))
    ]


def _fault(rng: random.Random, kind: str, place: Place, workers: Workers) -> tuple[str, Callable[[Job], object]]:
    number, seconds = rng.randrange(SIZE), rng.uniform(0.3, 1.0)
    if kind == "kill":
        return "kill", lambda _: workers.kill(number)
    if kind == "pause":
        pause = seconds * LONGEST_PAUSE
        return f"pause {pause:.1f} s", lambda _: workers.pause(number, pause)
    if kind == "outage" and place.make_unavailable is not None:
        outage = partial(place.make_unavailable, 2 * seconds)
        return f"store unavailable {2 * seconds:.1f} s", lambda _: outage()
    if kind == "flush":
        return "flush the broker", lambda _: place.flush()
    if kind == "hold":
        return f"job paused {seconds:.1f} s", lambda job: _hold(job, seconds)
    if kind in place.own_faults:
        return kind, lambda _: place.own_faults[kind](number)
    return f"cut {kind}", lambda _: place.proxies[kind].cut()


def _hold(job: Job, seconds: float) -> None:
    job.pause("chaos")
    time.sleep(seconds)
    job.resume()


def inject(faults: list[Fault], job: Job) -> list[str]:
    """Inject the faults one after the other and return their names."""
    for wait, _, action in faults:
        time.sleep(wait)
        action(job)
    return [name for _, name, _ in faults]
