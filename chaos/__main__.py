"""Run rounds and print one line for each: ``python -m chaos --place redis-redis --rounds 10 --seed 1``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos import run
from chaos.places import NAMES, load_environment, running_place
from chaos.workers import Workers


def main() -> int:
    """Run rounds. Return 1 if any of them failed."""
    parser = argparse.ArgumentParser(
        prog="chaos", description="Inject random faults and check the guarantees after each round."
    )
    parser.add_argument("--place", choices=NAMES, default=NAMES[0])
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=1, help="number of the first round, to repeat it")
    parser.add_argument("--keep", type=Path, help="keep logs and notes in this folder")
    options = parser.parse_args()
    failed = 0
    with running_place(options.place, options.keep) as place:
        load_environment(place)
        workers = Workers(place, options.pool)
        try:
            for number in range(options.first, options.first + options.rounds):
                outcome = run.run_round(place, workers, f"{options.seed}/{number}")
                _print_outcome(options, number, outcome)
                failed += bool(outcome.violations)
        finally:
            workers.stop()
        assert not workers.leftovers(), workers.leftovers()
    print(f"{options.place}: {options.rounds - failed} of {options.rounds} rounds passed", flush=True)
    return 1 if failed else 0


def _print_outcome(options: argparse.Namespace, number: int, outcome: run.Outcome) -> None:
    result = "FAILED" if outcome.violations else "passed"
    faults = ", ".join(outcome.faults)
    print(
        f"{result} {outcome.seconds:5.1f} s  --place {options.place} --pool {options.pool} --seed {options.seed} "
        f"--first {number} --rounds 1: {faults}",
        flush=True,
    )
    for violation in outcome.violations:
        print(f"    {violation}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
