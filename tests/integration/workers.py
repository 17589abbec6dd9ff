"""Real Celery workers in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

READY = 60.0
SPAWN = "spawn"
"""The name that tests use for a prefork pool whose children are spawned instead of forked."""

STOPPED = 60.0
"""Seconds to wait for a warm shutdown; many workers stop at the same time, some without their store."""


class Worker:
    """A worker of an app. The constructor returns when it is ready; its children stop with it."""

    def __init__(
        self,
        environment: dict[str, str],
        pool: str,
        queue: str,
        *options: str,
        concurrency: int = 2,
        app: str = "tracked",
        cwd: Path = Path(__file__).parent,
    ) -> None:
        name = queue.replace(",", "-and-")
        self.log = Path(environment["TRACKED_HOME"]) / f"{name}.log"
        if pool == SPAWN:
            pool, environment = "prefork", {**environment, "TRACKED_START_METHOD": "spawn"}
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool, "-c", str(concurrency)]
        command += ["-Q", queue, "-n", f"{name}@test", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *options]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._ready = threading.Event()
        threading.Thread(target=self._copy_log, daemon=True).start()
        if not self._ready.wait(READY):
            self.stop()
            raise RuntimeError(f"no worker after {READY} s:\n{self.log.read_text()}")

    def _copy_log(self) -> None:
        with self.log.open("w") as log, self.process.stdout:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                if " ready." in line:
                    self._ready.set()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOPPED)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # Celery logs the stacks of all threads
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            log = self.log.read_text(errors="replace")
            raise AssertionError(f"the worker does not stop:\n{log[-20_000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
