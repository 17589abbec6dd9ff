"""Celery workers of a small project, as processes that a test kills."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

READY = 60.0
"""Seconds for the start and for the end of a worker."""


def start_worker(home, app, *options):
    """Start a worker in a folder and return it when it is ready."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", *options]
    process = subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ready = threading.Event()
    threading.Thread(target=_read, args=(process, ready), daemon=True).start()
    if not ready.wait(READY):
        kill(process)
        raise AssertionError(f"the worker of {app} was not ready within {READY:.0f} s")
    return process


def kill(process):
    """Kill a worker and its children with SIGKILL."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(READY)


def _read(process, ready):
    with process.stdout:
        for line in process.stdout:
            if " ready." in line:
                ready.set()
