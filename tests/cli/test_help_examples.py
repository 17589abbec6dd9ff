"""Every example in the help of every command runs in a shell against a store with jobs."""

import os
import pty
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from celery import Celery

from celery_statemanager import Manager, StateManager, Status, completion, open_store
from celery_statemanager.testing import Grid

PATIENCE = 60.0
RUN = "2026-11-24"

COMMANDS = {
    each.name: each.load()
    for each in entry_points(group="celery.commands")
    if each.value.startswith("celery_statemanager.") and each.name != "web-state"  # it serves until it is interrupted
}
EXAMPLES = sorted(
    line.strip()
    for command in COMMANDS.values()
    for line in command.help.partition("Examples:")[2].partition("\n\n")[0].splitlines()
    if line.strip()
)

JQ = """\
import json, sys
*raw, path = sys.argv[1:]
for line in sys.stdin:
    value = json.loads(line)
    for name in path.strip(".").split("."):
        value = value[name]
    print(value if raw == ["-r"] else json.dumps(value))
"""
"""The part of jq that the examples use; unlike jq, it fails for a field that does not exist."""


def create_jobs(url):
    with open_store(url) as store:
        for job_id, token in (("etl-42", None), ("etl-42", RUN), ("other", None)):
            for row in range(2):
                if row == 0:
                    Manager.create(store, job_id, num_tasks=2, tags=("ingest", "export"), run_token=token)
                manager = Manager.open(store, job_id, task_index=row, run_token=token)
                for tag in manager.tags:
                    manager.set_state(tag, Status.FINISHED if job_id == "etl-42" else 40, "page 4")


def create_submitted_jobs(url):
    """Create the jobs that examples pause, resume, cancel and rerun.

    The messages of most cannot be read, so no sweep must see them.
    """
    with open_store(url) as store:
        Grid.submitted(store, 2, job_id="etl-43")
        completion.pause(store, Grid.submitted(store, 2, job_id="etl-44").ref, "deploying")

    def ingest(): ...

    app = Celery("proj", broker="memory://", set_as_current=False, statemanager_store_url=url)
    StateManager(app).submit([app.task(ingest, name="ingest", shared=False).s()] * 21, job_id="etl-45")
    with open_store(url) as store:
        Manager.open(store, "etl-45", task_index=3).set_state("default", Status.FAILED)


@pytest.fixture
def shell(home, tmp_path_factory):
    """Run a line in bash, at the home of ``proj``, with a user who answers "y" to every question."""
    for name in ("states", "old"):
        create_jobs(f"sqlite:///{home}/{name}.db")
    programs = tmp_path_factory.mktemp("bin")
    (programs / "jq.py").write_text(JQ)
    for name, action in (
        ("celery", f'exec "{sys.executable}" -m celery "$@"'),
        ("jq", f'exec "{sys.executable}" "{programs}/jq.py" "$@"'),
        ("deploy", "echo deployed"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{action}\n")
        (programs / name).chmod(0o755)

    def shell(line):
        if any(name in line for name in ("etl-43", "etl-44", "etl-45")):
            create_submitted_jobs(f"sqlite:///{home}/states.db")
        answers, terminal = pty.openpty()
        try:
            os.write(answers, b"y\n")
            return subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                cwd=home,
                env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
                stdin=terminal,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            os.close(answers)
            os.close(terminal)

    return shell


def test_every_command_has_examples():
    assert {re.search(r"celery (?:-A proj )?(\S+)", line)[1] for line in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_the_help_runs(shell, line):
    ended = shell(line.replace("firestore://my-project", "sqlite:///states.db"))
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert "Error" not in ended.stderr


def test_an_example_that_fails_is_noticed(shell):
    """The commands are the real ones: a job that does not exist and a field that does not exist fail."""
    assert shell("celery -A proj show-state other-job").returncode == 66
    assert shell("celery -A proj show-state etl-42 --format json | jq .tags.typo").returncode != 0
    assert "deployed" not in shell("celery -A proj monitor-state --job none --exit-status && deploy").stdout
