"""Runs the figures: ``python -m benchmarks [--scale quick] [--json results.json] [module …]``."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.harness import Figure, Scale

MODULES = ("writes", "sizes", "streams", "space", "imports", "jobs", "untracked", "submits", "in_flight", "firestore")
SLOW = {"in_flight", "firestore", "submits"}
"""Left out of quick runs, unless they are named."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What tracking costs.")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(MODULES)}; all if none is named")
    parser.add_argument("--scale", choices=Scale.NAMES, default="full")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    for name, value in report.machine().items():
        print(f"{name:24}{value}")
    scale = Scale(options.scale)
    names = options.modules or [name for name in MODULES if scale.name == "full" or name not in SLOW]
    print(f"\n{report.HEADING}")
    figures = list(_run(names, scale))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(options.json, scale.name, figures)


def _run(names: list[str], scale: Scale) -> Iterator[Figure]:
    for name in names:
        start = time.monotonic()
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").measure(scale):
                print(report.line(figure), flush=True)
                yield figure
        except pytest.skip.Exception as missing:  # what starts servers is shared with the tests
            print(f"{name}: not measured, {missing}")
        print(f"-- {name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
