"""Celery workers as processes that can be killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PATIENCE = 60.0


class Worker:
    """A worker with two processes. The constructor returns when it is ready.

    Args:
        app: the module of the Celery app.
        environment: additional environment variables.
    """

    def __init__(self, app: str, log: Path, **environment: str) -> None:
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-c", "2", "-l", "INFO"]
        self._process = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._log = log
        self._ready = threading.Event()
        threading.Thread(target=self._copy, daemon=True).start()
        if not self._ready.wait(PATIENCE):
            self.kill()
            raise SystemExit(f"the worker of {app} did not start within {PATIENCE:.0f} s: see {log}")

    def kill(self) -> None:
        """Kill the worker and its children, which cannot react to it, as ``kill -9`` does."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stop the worker in an orderly way; kill it if that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _copy(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output, self._log.open("a") as log:
            for line in output:
                log.write(line)
                log.flush()
                if " ready." in line:
                    self._ready.set()
