"""What happens in a round: drawn from its seed, so that it can be drawn again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from chaos.crew import SIZE, Crew
from chaos.places import Place

FEWEST, MOST = 3, 6
LONGEST_PAUSE = 5.0
"""Longer than the lease: who comes back may have been given up."""

Event = tuple[float, str, Callable[[], None]]


def draw(rng: random.Random, place: Place, crew: Crew) -> list[Event]:
    """Give the seconds to wait before each event, its name, and what it does."""
    kinds = ["kill", "kill", "pause", "away", *place.proxies]
    return [
        (rng.uniform(0.2, 1.2), *_event(rng, rng.choice(kinds), place, crew)) for _ in range(rng.randint(FEWEST, MOST))
    ]


def _event(rng: random.Random, kind: str, place: Place, crew: Crew) -> tuple[str, Callable[[], None]]:
    number, seconds = rng.randrange(SIZE), rng.uniform(0.3, 1.0)
    if kind == "kill":
        return "kill", lambda: crew.kill(number)
    if kind == "pause":
        pause = seconds * LONGEST_PAUSE
        return f"pause {pause:.1f} s", lambda: crew.pause(number, pause)
    if kind == "away":
        return f"store away {2 * seconds:.1f} s", lambda: place.away(2 * seconds)
    return f"cut {kind}", lambda: place.proxies[kind].cut() and None


def happen(events: list[Event]) -> list[str]:
    """Let it happen, one after the other; give what did."""
    told = []
    for wait, name, action in events:
        time.sleep(wait)
        action()
        told.append(name)
    return told
