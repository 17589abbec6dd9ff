"""Duration of an import in a new process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns, medians

_PROGRAM = """
import sys, time
start = time.perf_counter()
{code}
print((time.perf_counter() - start) * 1e3)
"""

_NO_CLIENTS = """
clients = sys.modules.keys() & {"redis", "google.cloud.firestore", "grpc", "msgpack", "psycopg", "starlette", "django"}
assert not clients, clients
"""

_COMPARED = (
    ("import celery_statemanager", "import celery"),
    ("from celery_statemanager import Manager", "from celery import Celery"),
)


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare with imports of Celery. Both packages import names on first access."""
    for ours, peer in _COMPARED:
        measures = {"ours": import_timer(ours, _NO_CLIENTS), "peer": import_timer(peer)}
        results = medians(in_turns(measures, scale(1, 9, 21)))
        yield Figure(ours, peer, results["ours"], results["peer"], "ms", 10, "above")


def import_timer(code: str, check: str = "") -> Callable[[], float]:
    """Return a function that runs an import in a new process and returns its duration in milliseconds.

    Args:
        check: assertions to run afterwards.
    """
    command = [sys.executable, "-c", _PROGRAM.format(code=code) + check]
    return lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
