"""Figures as text and as JSON; ``python -m benchmarks.report results.json`` prints ``RESULTS.md``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure

_PACKAGES = ("celery", "kombu", "redis", "hiredis", "msgpack", "google-cloud-firestore", "psycopg")


def machine() -> dict[str, str]:
    """Return the hardware and the versions on which the figures were measured."""
    system = {
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "redis-server": _version("redis-server"),
    }
    return system | {name: _installed(name) for name in _PACKAGES}


def line(figure: Figure) -> str:
    """Return a figure as a row of text under ``HEADING``."""
    what, against, ours, peer, measured, bound, verdict = _cells(figure)
    return f"{what:52.52} {ours:>15} {peer:>15}  {against:36.36} {measured:>15}  {bound:<14} {verdict}"


def _cells(figure: Figure) -> tuple[str, ...]:
    unit = f" {figure.unit}".rstrip()
    sign = {"times": " ×", "above": f"{unit} more", "alone": unit}[figure.kind]
    ours, measured = f"{_short(figure.ours)}{unit}", f"{_short(figure.measured)}{sign}"
    peer = "–" if figure.peer is None else f"{_short(figure.peer)}{unit}"
    bound = f"{'≥' if figure.at_least else '≤'} {_short(figure.limit)}{sign}"
    return figure.what, figure.against, ours, peer, measured, bound, "yes" if figure.reached else "no"


HEADING = f"{'what':52} {'ours':>15} {'of peer':>15}  {'peer':36} {'measured':>15}  {'target':<14} reached"


def write_json(
    path: Path, scale: str, machine: Mapping[str, str], figures: Iterable[Figure], missing: Mapping[str, str]
) -> None:
    """Save the figures of a run to a file.

    Args:
        missing: modules that were not measured completely, with the reasons.
    """
    date = datetime.now(timezone.utc).date().isoformat()
    measured = [each.to_json() for each in figures]
    results: dict[str, Any] = {"date": date, "scale": scale, "machine": machine, "figures": measured}
    text = json.dumps({**results, "missing": missing}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


_EXPLANATION = """\
The cost of tracking, compared with the alternatives. `make bench` overwrites this page with the results of one run.

Each figure and its peer are measured alternately in the same run; each number is a median. *Measured* is the ratio to
the peer (×), the difference from it ("more"), or, without a peer, the figure itself. "itself at 100" is the same call
on a job of 100 tasks. Ratios are easier to compare between machines than times."""


def page(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of ``RESULTS.md`` from the results that ``write_json`` saved."""
    yield from ("# Benchmark results", "", *_EXPLANATION.splitlines(), "")
    yield from ("| run | |", "|---|---|", f"| date | {results['date']} |", f"| scale | {results['scale']} |")
    yield from (f"| {name} | {value} |" for name, value in results["machine"].items())
    yield from ("", *_table(results))
    if results["missing"]:
        yield from ("", *(f"Not measured: {name} ({why})." for name, why in results["missing"].items()))


def _table(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| what | peer | ours | peer's | measured | target | reached |", "|---|---|---|---|---|---|---|")
    for given in results["figures"]:
        figure = Figure(**{each.name: given[each.name] for each in fields(Figure)})
        yield "| {} |".format(" | ".join(_cells(figure)))


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1_000 else f"{number:.3g}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _version(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        return "not installed"
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()[:40]


if __name__ == "__main__":
    print("\n".join(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
