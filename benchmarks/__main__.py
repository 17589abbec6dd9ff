"""Runs the figures: ``python -m benchmarks [--scale quick] [--json results.json] [module …]``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.harness import Figure, Scale

MODULES = ("writes", "sizes", "streams", "space", "imports", "jobs", "untracked", "submits", "in_flight", "firestore")
SLOW = {"in_flight", "firestore", "submits"}
"""Left out of quick runs, unless they are named."""

PATIENCE = 900
"""Seconds after which a module is given up."""


def main() -> int:
    """Measure, print, write; give 1 if a module failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What tracking costs.")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(MODULES)}; all if none is named")
    parser.add_argument("--scale", choices=Scale.NAMES, default="full")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    machine = report.machine()
    for name, value in machine.items():
        print(f"{name:24}{value}")
    scale = Scale(options.scale)
    names = options.modules or [name for name in MODULES if scale.name == "full" or name not in SLOW]
    run = _Run()
    print(f"\n{report.HEADING}")
    try:
        for name in names:
            run.measure(name, scale)
    finally:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            report.write_json(options.json, scale.name, machine, run.figures, run.missing)
    print("".join(f"\n{name}: not measured, {why}" for name, why in run.missing.items()))
    return int(run.failed)


class _Run:
    """What was measured so far, and why the rest was not: one module that fails costs no other its figures."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.missing: dict[str, str] = {}
        self.failed = False

    def measure(self, name: str, scale: Scale) -> None:
        """Take a module's figures."""
        start = time.monotonic()
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(PATIENCE)
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").measure(scale):
                print(report.line(figure), flush=True)
                self.figures.append(figure)
        except pytest.skip.Exception as absent:  # what starts servers is shared with the tests
            self.missing[name] = str(absent)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it is, the others go on
            self.failed = True
            self.missing[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            signal.alarm(0)
        print(f"-- {name}: {time.monotonic() - start:.0f} s", flush=True)


class _TooLong(Exception):
    """No ``TimeoutError``: a client would take it for its socket's, and try again."""


def _give_up(*_: Any) -> None:
    raise _TooLong(f"it took more than {PATIENCE} s")


if __name__ == "__main__":
    sys.exit(main())
