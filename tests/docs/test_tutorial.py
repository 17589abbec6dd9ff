"""Every command of the tutorial is executed, in order, and prints what the tutorial shows."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from servers import running_redis

from celery_statemanager import Manager, Status, open_store
from celery_statemanager.testing.ports import free_port

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
PAGES = sorted(TUTORIAL.glob("*.md"))
PATIENCE = 60.0
PREPARED = ("python3 -m venv", "pip install", ". .venv")
"""Commands that prepare the machine; whoever runs this test has done so."""

SERVERS = {"celery -A photos worker": " ready.", "celery -A photos web-state": "http://", "uvicorn": "Uvicorn running"}
"""Commands that run until they are stopped, and what they print when they are ready."""


class Terminal:
    """Executes the commands of the pages in one folder, as a reader does."""

    def __init__(self, home, broker):
        self.home = home
        programs = Path(sys.executable).parent
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "CELERY_BROKER_URL": broker, "PYTHONUNBUFFERED": "1"}
        self.ports = {"8000": str(free_port()), "8080": str(free_port())}
        self.servers = {}
        self.executed = 0

    def run(self, line, expected):
        for port, free in self.ports.items():
            line = line.replace(port, free)
        self.executed += 1
        begins = next((each for each in SERVERS if line.startswith(each)), None)
        if begins:
            self.start(line, begins)
            return
        if line.startswith("kill "):
            wait_for_photos(self.home)
            line = line.replace("kill", "/bin/kill", 1)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert re.fullmatch(pattern_of(expected), done.stdout), (line, done.stdout)

    def start(self, line, begins):
        """Start a server and wait until it is ready. The one that a page starts again has ended."""
        if begins in self.servers:
            assert self.servers[begins].wait(10) == -signal.SIGKILL
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.servers[begins] = process
        ready, printed = threading.Event(), []
        threading.Thread(target=copy, args=(process, SERVERS[begins], ready, printed), daemon=True).start()
        assert ready.wait(PATIENCE), printed

    def stop(self):
        for process in self.servers.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def copy(process, text, ready, printed):
    with process.stdout as output:
        for line in output:
            printed.append(line)
            if text in line:
                ready.set()


def wait_for_photos(home):
    """Wait until two photos are done and others are being resized."""
    manager = Manager.open(open_store(f"sqlite:///{home}/celery-statemanager.db"), "album-2")
    finished = set()
    for event in manager.subscribe():
        if event.state.status == Status.FINISHED:
            finished.add(event.state.task_index)
        elif len(finished) >= 2 and event.state.status > 0:
            return


def pattern_of(expected):
    """Return the pattern of an output in which ``…`` stands for any text, and alone on a line for any lines."""
    if not expected:
        return "(?s:.*)"
    lines = []
    for line in expected:
        shown = re.sub(r"\\?\s+", r"\\s+", re.escape(line).replace("…", r"[^\n]*"))
        lines.append(r"(?s:.*)" if line == "…" else rf"\s*{shown}\s*")
    return "".join(lines) if expected[-1] == "…" else "".join(lines) + "(?s:.*)"


def steps(page):
    """Yield the files and the commands of a page, with the output that it shows, in order."""
    text = page.read_text(encoding="utf-8")
    for language, title, block in re.findall(
        r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE
    ):
        if title:
            yield "file", title, block
        elif language == "console":
            for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *expected = command.rstrip("\n").split("\n")
                yield "command", line.split("   #")[0].strip(), expected


@pytest.fixture
def terminal(tmp_path):
    with running_redis() as server:
        terminal = Terminal(tmp_path, server.url)
        try:
            yield terminal
        finally:
            terminal.stop()


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_printed(terminal):
    for page in PAGES:
        for kind, name, content in steps(page):
            if kind == "file":
                (terminal.home / name).write_text(content.replace("time.sleep(0.3)", "time.sleep(0.1)"))
            elif not name.startswith(PREPARED):
                terminal.run(name, content)
    assert terminal.executed >= 18
    manager = Manager.open(open_store(f"sqlite:///{terminal.home}/celery-statemanager.db"), "album-3")
    for event in manager.subscribe(until_settled=True):
        assert event.state.status >= 0
    assert manager.summary().finished == 12


def test_an_output_that_differs_is_noticed():
    shown = ["JOB  DONE", "…", "album-1  100%  …"]
    assert re.fullmatch(pattern_of(shown), "JOB   DONE\nother 3%\nalbum-1   100%  3s\n")
    assert not re.fullmatch(pattern_of(shown), "JOB   DONE\nother 3%\nalbum-1   99%  3s\n")
