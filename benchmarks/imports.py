"""How long an import takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns, medians

_PROGRAM = """
import sys, time
start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1e3)
clients = sys.modules.keys() & {{"redis", "google.cloud.firestore", "grpc", "msgpack"}}
assert not clients, clients
"""


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare with importing Celery."""
    modules = {"peer": "celery", "ours": "celery_statemanager", "both": "celery, celery_statemanager"}
    measures = {name: importing(module) for name, module in modules.items()}
    found = medians(in_turns(measures, scale(1, 9, 41)))
    yield Figure("import celery_statemanager", "import celery", found["ours"], found["peer"], "ms", 30, "above")
    yield Figure("import both", "import celery", found["both"], found["peer"], "ms", 30, "above")


def importing(module: str) -> Callable[[], float]:
    """Give a call that imports in a new process and gives milliseconds; fails if it loads a store's client."""
    command = [sys.executable, "-c", _PROGRAM.format(module=module)]
    return lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
