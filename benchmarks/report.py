"""Figures as people read them, and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure

_PACKAGES = ("celery", "kombu", "redis", "hiredis", "msgpack", "google-cloud-firestore")


def machine() -> dict[str, str]:
    """Say what it was measured on."""
    found = {
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "redis-server": _version("redis-server"),
    }
    return found | {name: _installed(name) for name in _PACKAGES}


def line(figure: Figure) -> str:
    """Give a row of the table."""
    sign = {"times": " x", "above": f" {figure.unit} more", "alone": f" {figure.unit}"}[figure.kind]
    peer = "" if figure.peer is None else f"{_short(figure.peer)} {figure.unit}"
    bound = f"{'>=' if figure.at_least else '<='} {_short(figure.limit)}{sign}"
    verdict = "yes" if figure.reached else "no"
    ours, measured = f"{_short(figure.ours)} {figure.unit}", f"{_short(figure.measured)}{sign}"
    return f"{figure.what:52.52} {ours:>15} {peer:>15}  {figure.against:36.36} {measured:>15}  {bound:<14} {verdict}"


HEADING = f"{'what':52} {'ours':>15} {'peer':>15}  {'which is':36} {'measured':>15}  {'to reach':<14} reached"


def write_json(path: Path, scale: str, figures: Iterable[Figure]) -> None:
    """Write everything to a file."""
    found: dict[str, Any] = {"scale": scale, "machine": machine(), "figures": [each.to_json() for each in figures]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
