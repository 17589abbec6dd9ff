"""Commands whose standard streams are closed, cannot be written, or have lost their reader."""

import subprocess
import sys

import pytest

from celery_statemanager import Manager
from celery_statemanager.cli.common import Exit

PATIENCE = 60.0

COMMANDS = {
    "list-state": (),
    "show-state": ("etl-42",),
    "why-state": ("etl-42",),
    "export-state": ("etl-42",),
    "monitor-state": ("etl-42", "--no-follow"),
    "sweep-state": (),
    "migrate-state": ("--target", "1"),
    "gc-state": ("--tombstone-age", "1ms", "--delete-age", "2ms"),
    "delete-state": ("etl-42", "--yes"),
}


@pytest.fixture
def run(home, kept):
    """Return a function that runs a command on one job with redirections of the shell."""
    Manager.create(kept, "etl-42", num_tasks=2, tags=("ingest",))

    def run(name, redirections, *arguments):
        words = [sys.executable, "-m", "celery", "-A", "proj", name, *(arguments or COMMANDS[name])]
        shell = ["sh", "-c", f'"$@" {redirections}', "sh", *words]
        return subprocess.run(shell, cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False)

    return run


def exists(store):
    return any(store.list_jobs(limit=1, tombstoned=each).jobs for each in (True, False))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_without_standard_output(run, kept, name):
    ended = run(name, ">&-")
    assert (ended.returncode, ended.stderr) == (Exit.OK, "")
    assert exists(kept) is (name not in {"gc-state", "delete-state"})


@pytest.mark.parametrize("name", ["gc-state", "delete-state"])
def test_a_command_does_its_work_although_its_reader_has_exited(run, kept, name):
    ended = run(name, "| true")
    assert (ended.returncode, ended.stderr) == (Exit.OK, "")
    assert not exists(kept)


def test_a_command_without_any_stream_ends_with_its_exit_code(run):
    assert run("show-state", ">&- 2>&- <&-", "unknown").returncode == Exit.NO_JOB
    assert run("gc-state", ">&- 2>&- <&-").returncode == Exit.OK


def test_a_question_needs_an_open_standard_input(run, kept):
    ended = run("delete-state", "<&-", "etl-42")
    assert ended.returncode == Exit.USAGE
    assert ended.stderr.startswith("Error: no terminal to confirm the deletion")
    assert exists(kept)


def test_an_output_that_is_open_for_reading_only_is_reported(run):
    ended = run("list-state", "1</dev/null")
    assert (ended.returncode, ended.stderr) == (Exit.OUTPUT, "Error: cannot write the output: Bad file descriptor\n")
