"""Small projects: a module with its own app, written by a test, and workers of it."""

import importlib
import itertools
import sys
import textwrap
import time

from workers import Worker

PREAMBLE = """
import os, time
from pathlib import Path

from celery import Celery, chain, group

from celery_statemanager import StatefulTask, StateManager, current_state
from examples import broker

HOME = Path(__file__).parent

def note(name, text="x"):
    with (HOME / name).open("a") as file:
        file.write(f"{text}\\n")

def new_app(name="PROJECT", **options):
    app = Celery(name, broker="filesystem://", **options)
    app.conf.update(
        broker.settings(HOME), statemanager_store_url=f"sqlite:///{HOME}/states.db", statemanager_lease=6.0,
        statemanager_sweep_interval=1.5, statemanager_progress_interval=0.0, statemanager_store_timeout=5.0,
        broker_connection_retry_on_startup=True, task_ignore_result=True, worker_lost_wait=1.0,
    )
    return app
"""

_numbers = itertools.count()


class Project:
    """A folder with one module and the modules of ``others``, and the module imported."""

    def __init__(self, home, text, *, preamble=PREAMBLE, **others):
        self.home, self.name = home, f"project{next(_numbers)}"
        self._workers = []
        for name, code in {**others, self.name: preamble + textwrap.dedent(text)}.items():
            (home / f"{name}.py").write_text(textwrap.dedent(code).replace("PROJECT", self.name))
        sys.path.insert(0, str(home))
        try:
            self.module = importlib.import_module(self.name)
        finally:
            sys.path.remove(str(home))

    def __getattr__(self, name):
        return getattr(self.module, name)

    def start_worker(self, *options, pool="prefork", concurrency=2, app=None, environment=()):
        name = f"worker{len(self._workers)}"
        given = {"TRACKED_HOME": str(self.home), **dict(environment)}
        queues = f"celery,{name}"
        worker = Worker(given, pool, queues, *options, concurrency=concurrency, app=app or self.name, cwd=self.home)
        self._workers.append(worker)
        return worker

    def log(self):
        return "".join(each.log.read_text() for each in self._workers)

    def notes(self, name):
        file = self.home / name
        return file.read_text().split() if file.exists() else []

    def wait(self, condition, seconds=60):
        """Wait until a condition is true; return whether it is."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(condition())

    def close(self):
        for worker in self._workers:
            worker.kill()
        if hasattr(self.module, "states"):
            self.states.store.close()
