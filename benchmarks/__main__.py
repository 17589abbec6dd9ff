"""Run the benchmarks: ``python -m benchmarks [--scale quick] [--json results.json] [module …]``."""

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

MODULES = (
    "writes",
    "backends",
    "sizes",
    "lists",
    "sweeps",
    "contention",
    "streams",
    "subscribers",
    "space",
    "imports",
    "jobs",
    "chords",
    "untracked",
    "stalls",
    "submits",
    "windows",
    "reruns",
    "results",
    "in_flight",
    "holding",
    "firestore",
    "postgres",
)
SLOW = {"backends", "in_flight", "holding", "firestore", "postgres", "submits", "reruns", "windows"}
"""Modules that quick runs omit unless they are named."""

TIMEOUT = 900
"""Seconds after which a module is aborted."""


def main() -> int:
    """Measure, print and save the figures. Return 1 if a module failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the cost of tracking.")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"any of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--scale", choices=Scale.NAMES, default="full")
    parser.add_argument("--json", type=Path, help="save the results to this file")
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
    """The figures measured so far, and the reason for each module that could not be measured."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.missing: dict[str, str] = {}
        self.failed = False

    def measure(self, name: str, scale: Scale) -> None:
        """Measure the figures of one module."""
        start = time.monotonic()
        signal.signal(signal.SIGALRM, _abort)
        signal.alarm(TIMEOUT)
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").measure(scale):
                print(report.line(figure), flush=True)
                self.figures.append(figure)
        except pytest.skip.Exception as skipped:  # raised by the tests' helpers if a server is not installed
            self.missing[name] = str(skipped)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the other modules still run
            self.failed = True
            self.missing[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            signal.alarm(0)
        print(f"-- {name}: {time.monotonic() - start:.0f} s", flush=True)


class _ModuleTimeout(Exception):
    """Not a ``TimeoutError``, because a client would attribute that to its socket and retry."""


def _abort(*_: Any) -> None:
    raise _ModuleTimeout(f"the module took more than {TIMEOUT} s")


if __name__ == "__main__":
    sys.exit(main())
