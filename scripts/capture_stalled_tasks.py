"""Print what ``why-state`` and ``monitor-state`` show for a stalled task in each pool, as Markdown.

Starts a worker of each pool with a task that runs and does not move. The exit status is 1 if ``why-state`` does not
name the line in which the task stands.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
POOLS = ("prefork", "threads", "solo", "gevent")
PATIENCE = 60.0
COLUMNS, ROWS = 100, 24
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
EXPECTED = re.compile(r"alive, but has not moved for \S+( \S+)?; stands in resize_\w+\.py:\d+ read_tile")

PROJECT = """
import time
from pathlib import Path

from celery import Celery
from celery_statemanager import StatefulTask, StateManager
from examples import broker

HOME = Path(__file__).parent
app = Celery(__name__, broker="filesystem://", set_as_current=False)
app.conf.update(
    broker.settings(HOME), statemanager_store_url=f"sqlite:///{HOME}/states.db", statemanager_sweep_interval=1.0,
    statemanager_progress_interval=0.0, task_ignore_result=True, broker_connection_retry_on_startup=True,
)
states = StateManager(app)


def read_tile():
    while True:
        time.sleep(0.05)


@app.task(base=StatefulTask, bind=True, tag="resize", stall_after=2.0, shared=False)
def resize(self):
    self.state.progress(4, 10, "page 4 of 10")
    read_tile()
"""


def main() -> int:
    """Capture each pool. Return the exit status."""
    complete = True
    for pool in POOLS:
        with tempfile.TemporaryDirectory() as folder:
            why, monitor = capture(Path(folder), f"resize_{pool}", pool)
        complete = complete and EXPECTED.search(" ".join(why.split())) is not None
        print(f"## {pool}\n\n```\n$ celery -A shop why-state photos\n{why}\n\n$ celery -A shop monitor-state photos")
        print(f"{monitor}\n```\n", flush=True)
    return 0 if complete else 1


def capture(home: Path, name: str, pool: str) -> tuple[str, str]:
    """Return the output of both commands for a task that has stalled in a worker of a pool."""
    (home / f"{name}.py").write_text(PROJECT)
    sys.path.insert(0, str(home))
    project = importlib.import_module(name)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{home}", "NO_COLOR": "1", "TERM": "xterm"}
    celery = [sys.executable, "-m", "celery", "-A", name]
    with (home / "log").open("w") as log:
        worker = subprocess.Popen(
            [*celery, "worker", "-P", pool, "-c", "1"], cwd=home, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        job = project.states.submit([project.resize.s()], job_id="photos")
        deadline = time.monotonic() + PATIENCE
        while not job.summary().stalled:
            if time.monotonic() > deadline:
                raise SystemExit(f"the task has not stalled:\n{(home / 'log').read_text()}")
            time.sleep(0.1)
        why = subprocess.run(
            [*celery, "why-state", "photos"], cwd=home, env=environment, capture_output=True, text=True, check=True
        )
        shown = on_terminal([*celery, "monitor-state", "photos", "--no-follow"], home, environment)
        return why.stdout.rstrip(), shown.rstrip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        project.states.store.close()
        sys.path.remove(str(home))


def on_terminal(command: list[str], home: Path, environment: dict[str, str]) -> str:
    """Return the output of a command that runs on a terminal, without control sequences."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(command, cwd=home, env=environment, stdin=child, stdout=child, stderr=child):
        os.close(child)
        found = bytearray()
        with contextlib.suppress(OSError), os.fdopen(parent, "rb", buffering=0) as terminal:
            while part := terminal.read(4_096):
                found += part
    return ANSI.sub("", found.decode())


if __name__ == "__main__":
    sys.exit(main())
