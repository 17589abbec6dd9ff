"""How long an import takes, in a process of its own."""

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
clients = sys.modules.keys() & {"redis", "google.cloud.firestore", "grpc", "msgpack"}
assert not clients, clients
"""

_COMPARED = (
    ("import celery_statemanager", "import celery"),
    ("from celery_statemanager import Manager", "from celery import Celery"),
)


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare with Celery's, both of which load names at their first use."""
    for ours, peer in _COMPARED:
        measures = {"ours": importing(ours, _NO_CLIENTS), "peer": importing(peer)}
        found = medians(in_turns(measures, scale(1, 9, 21)))
        yield Figure(ours, peer, found["ours"], found["peer"], "ms", 30, "above")


def importing(code: str, check: str = "") -> Callable[[], float]:
    """Give a call that runs an import in a new process and gives milliseconds.

    Args:
        check: what must hold afterwards.
    """
    command = [sys.executable, "-c", _PROGRAM.format(code=code) + check]
    return lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
