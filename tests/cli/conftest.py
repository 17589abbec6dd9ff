"""Jobs, and ways to run the commands on them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import queue
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import uuid
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner

from celery_statemanager import Manager, State, Status, open_store
from celery_statemanager.cli.model import JobModel
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation, new_job

PATIENCE = 30.0
RETRY = 3.0

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background process; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
BEGAN = NOW - timedelta(seconds=134)


@pytest.fixture
def url():
    """The URL of an empty store in this process."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(url):
    return open_store(url)


@pytest.fixture
def app(url):
    app = Celery(f"app-{uuid.uuid4().hex}", broker="memory://", set_as_current=False)
    app.conf.statemanager_store_url = url
    return app


@pytest.fixture
def command(app):
    """Return a function that runs a command by its name and returns its result."""

    def command(name, *arguments, app=app):
        obj = SimpleNamespace(app=app, no_color=False)
        return CliRunner().invoke(celery_command.commands[name], arguments, obj=obj)

    return command


@pytest.fixture
def error_of():
    """Return a function that returns the error of a result, which must be one line."""

    def error_of(result):
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        return result.stderr.removeprefix("Error: ").rstrip("\n")

    return error_of


@pytest.fixture
def write(store):
    """Write cells of a job: rows of (task_index, tag, status, message)."""

    def write(job_id, *cells):
        for index, tag, status, message in cells:
            Manager.open(store, job_id, task_index=index).set_state(tag, status, message)

    return write


@pytest.fixture
def cancel():
    def cancel(store, job_id, reason="user asked"):
        job = Manager.open(store, job_id)
        record = store.get_job(job.ref.key)
        assert store.update_job(replace(record, cancelled=Cancellation(reason, store.now()))) is not None

    return cancel


def make_job(num_tasks=100, tags=("ingest", "export"), **changes):
    job = new_job(changes.pop("job_id", "etl-42"), num_tasks, tags, changes.pop("run_token", None))
    return replace(job, created_at=int(BEGAN.timestamp() * 1_000_000), **changes)


@pytest.fixture
def job():
    return make_job


def make_state(index, tag, status, message=None, *, progress=None, age=3.0, attempt=1):
    payload = None if progress is None else {"progress": {"done": progress[0], "total": progress[1]}}
    moment = NOW - timedelta(seconds=age)
    return State("etl-42", index, tag, status, message, payload, moment, 1, "e", attempt)


@pytest.fixture
def state():
    return make_state


@pytest.fixture
def busy_model():
    """A job in progress: some cells finished, many running, failures of several causes."""

    def busy_model(num_tasks=100, tags=("ingest", "export"), running=30, **changes):
        model = JobModel(make_job(num_tasks, tags, **changes), Scope())
        model.loading = False
        for index in range(40):
            model.apply(make_state(index, tags[0], Status.FINISHED))
        for index in range(40, 40 + running):
            model.apply(make_state(index, tags[0], 40, "Seite 4 von 10: 日本語 " + "x" * 300, progress=(4, 10)))
        for index in (3, 17, 18, 19, 20):
            model.apply(make_state(index, tags[-1], Status.FAILED, "ValueError: no such page"))
        model.apply(make_state(22, tags[-1], Status.TIMED_OUT, "soft time limit\n\x1b[2Jexceeded"))
        model.apply(make_state(23, tags[-1], -12))
        return model

    return busy_model


class Watched:
    """A monitor in a process of its own; its lines are read with a timeout."""

    def __init__(self, arguments, cwd, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.decode())
        self._lines.put(None)

    def line(self):
        return self._lines.get(timeout=PATIENCE)

    def rest(self):
        found = []
        while (line := self.line()) is not None:
            found.append(line)
        return found

    def end(self):
        """Wait for the end; return the exit code and standard error."""
        code = self.process.wait(PATIENCE)
        return code, self.process.stderr.read().decode()

    def clean_up(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def home(tmp_path):
    """A directory with an app, ``proj``, whose store is ``states.db``."""
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "app = Celery('proj', broker='memory://')\n"
        "app.conf.statemanager_store_url = 'sqlite:///states.db'\n"
    )
    return tmp_path


@pytest.fixture
def kept(home):
    """The store of ``proj``."""
    with open_store(f"sqlite:///{home}/states.db") as store:
        yield store


@pytest.fixture
def watched(home):
    started = []

    def watched(*arguments, app=True, **environment):
        before = ["-A", "proj"] if app else []
        started.append(Watched([*before, "monitor-state", *arguments], home, **environment))
        return started[-1]

    yield watched
    for each in started:
        each.clean_up()


class Terminal:
    """A command on a terminal of its own; its output is read with a timeout."""

    def __init__(self, arguments, cwd, **environment):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        unset = {"NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"}
        given = {name: value for name, value in os.environ.items() if name not in unset}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "proj", *arguments],
            cwd=cwd,
            env={**given, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._chunks = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.drawn = ""

    def _read(self):
        while True:
            try:
                chunk = os.read(self._master, 65_536)
            except OSError:
                chunk = b""
            self._chunks.put(chunk)
            if not chunk:
                return

    def wait_for(self, pattern):
        """Wait until the output matches a pattern."""
        while not re.search(pattern, self.drawn):
            chunk = self._chunks.get(timeout=PATIENCE)
            assert chunk, f"ended without {pattern!r}: {self.drawn!r}"
            self.drawn += chunk.decode(errors="replace")

    def type(self, keys):
        os.write(self._master, keys.encode())

    def interrupt(self):
        """Press Ctrl-C until the process ends: one just before a blocking read does not interrupt the read."""
        for _ in range(int(PATIENCE / RETRY)):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(RETRY)
                return

    def end(self):
        """Wait for the end; return the exit code and what remains on the screen."""
        while chunk := self._chunks.get(timeout=PATIENCE):
            self.drawn += chunk.decode(errors="replace")
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._master)
        return code, self.drawn.rpartition("\x1b[?1049l")[2]


@pytest.fixture
def terminal(home):
    started = []

    def terminal(*arguments, command="monitor-state", **environment):
        started.append(Terminal([command, *arguments], home, **environment))
        return started[-1]

    yield terminal
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(PATIENCE)
