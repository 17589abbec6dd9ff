"""``python -m chaos --place redis-redis --rounds 10 --seed 1``: one line a round."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos import run
from chaos.crew import Crew
from chaos.places import NAMES, load, place


def main() -> int:
    """Play rounds; 1 if any went wrong."""
    parser = argparse.ArgumentParser(prog="chaos", description="Random trouble, and a verdict after each round.")
    parser.add_argument("--place", choices=NAMES, default=NAMES[0])
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=1, help="number of the first round: to repeat one")
    parser.add_argument("--keep", type=Path, help="a folder for logs and notes, to look into afterwards")
    given = parser.parse_args()
    bad = 0
    with place(given.place, given.keep) as where:
        load(where)
        crew = Crew(where, given.pool)
        try:
            for number in range(given.first, given.first + given.rounds):
                bad += _tell(given, number, run.play(where, crew, f"{given.seed}/{number}"))
        finally:
            crew.dismiss()
        assert not crew.left_behind(), crew.left_behind()
    print(f"{given.place}: {given.rounds - bad} of {given.rounds} rounds good", flush=True)
    return 1 if bad else 0


def _tell(given: argparse.Namespace, number: int, outcome: run.Outcome) -> bool:
    verdict = "BAD" if outcome.findings else "good"
    stuck = f", {outcome.stuck} messages stuck in the broker" if outcome.stuck else ""
    untold = f", {outcome.untold} rows killed before the store was back" if outcome.untold else ""
    events = ", ".join(outcome.events)
    print(
        f"{verdict} {outcome.seconds:5.1f} s  --place {given.place} --pool {given.pool} --seed {given.seed} "
        f"--first {number} --rounds 1: {events}{stuck}{untold}",
        flush=True,
    )
    for finding in outcome.findings:
        print(f"    {finding}", flush=True)
    return bool(outcome.findings)


if __name__ == "__main__":
    sys.exit(main())
