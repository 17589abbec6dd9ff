"""``monitor-state`` as users run it: a process with a pipe or a terminal."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celery_statemanager import Manager, Status
from celery_statemanager.testing import Grid

PATIENCE = 30.0


@pytest.fixture
def running(kept):
    """A job that is not over."""
    Manager.create(kept, "etl-42", num_tasks=2, tags=("ingest",))
    Manager.open(kept, "etl-42", task_index=0).progress("ingest", 4, 10, "page 4")
    return "etl-42"


def finish(store, job_id):
    for index in range(2):
        Manager.open(store, job_id, task_index=index).set_state("ingest", Status.FINISHED, "done")


def test_replay_then_live_until_the_job_has_settled(kept, running, watched):
    monitor = watched("--job", running)
    first = json.loads(monitor.line())
    assert (first["taskID"], first["status"], first["replay"]) == (0, 40, True)
    finish(kept, running)
    rest = [json.loads(line) for line in monitor.rest()]
    assert [(each["taskID"], each["status"], each["replay"]) for each in rest] == [
        (0, 2**31 - 1, False),
        (1, 2**31 - 1, False),
    ]
    assert monitor.end() == (0, "")


def test_no_app_is_needed_where_a_store_is_named(kept, running, watched):
    monitor = watched("--job", running, "--no-follow", "--store", "sqlite:///states.db", app=False)
    assert len(monitor.rest()) == 1
    assert monitor.end() == (0, "")


def test_without_app_and_store_the_error_says_what_to_write(watched):
    monitor = watched("--job", "etl-42", app=False)
    code, error = monitor.end()
    assert code == 2
    assert error == "Error: no app and no store: write celery -A proj …, or name a store with --store URL\n"


@pytest.mark.parametrize("style", ["json", "table"])
def test_ctrl_c_ends_the_command_cleanly(running, watched, style):
    monitor = watched("--job", running, "--format", style)
    while "page 4" not in monitor.line():
        pass
    monitor.process.send_signal(signal.SIGINT)
    code, error = monitor.end()
    assert (code, error) == (130, "")
    assert ("0 of 2 finished" in "".join(monitor.rest())) is (style == "table")


def test_a_table_notes_once_that_no_worker_is_alive(kept, watched):
    Grid.submitted(kept, 1, ("ingest",), "queued")
    monitor = watched("queued", "--format", "table")
    said = monitor.process.stderr.readline().decode()
    assert said == "note: no live worker: start a worker, or compare the store_url of the running ones\n"
    monitor.process.send_signal(signal.SIGINT)
    assert monitor.end() == (130, "")
    assert any("not settled" in line for line in monitor.rest())


def test_the_command_ends_quietly_when_the_reader_is_gone(home, running):
    """Nothing is written meanwhile: the closed pipe is noticed without a write."""
    command = [sys.executable, "-m", "celery", "-A", "proj", "monitor-state", "--job", running]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert b"page 4" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [("monitor-state", "--job"), ("show-state",), ("why-state",)])
def test_output_that_cannot_be_written_is_reported_in_one_line(home, running, command):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "celery", *command, running, "--store", "sqlite:///states.db"],
            cwd=home,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (74, "Error: cannot write the output: No space left on device\n")


def test_text_that_cannot_be_encoded_is_replaced(kept, running, watched):
    Manager.open(kept, running, task_index=1).set_state("ingest", 50, "größer ☃")
    monitor = watched("--job", running, "--no-follow", "--format", "table", PYTHONIOENCODING="ascii")
    assert "gr??er ?" in "".join(monitor.rest())
    assert monitor.end() == (0, "")


def test_a_terminal_shows_a_live_display_and_keeps_the_summary(kept, running, terminal):
    monitor = terminal("--job", running)
    monitor.wait_for(r"page 4")
    finish(kept, running)
    code, left = monitor.end()
    assert code == 0
    assert "all finished" in left
    assert "2 of 2 finished" in left
    assert monitor.drawn.count("\x1b[?1049h") == 1
    assert "\x1b[?25h" in monitor.drawn


def test_ctrl_c_restores_the_terminal(running, terminal):
    monitor = terminal("--job", running)
    monitor.wait_for(r"page 4")
    monitor.process.send_signal(signal.SIGINT)
    code, left = monitor.end()
    assert code == 130
    assert "not settled" in left
    assert "Traceback" not in left


def test_sigterm_restores_the_terminal(running, terminal):
    monitor = terminal("--job", running)
    monitor.wait_for(r"page 4")
    monitor.process.terminate()
    code, left = monitor.end()
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in left


def test_a_settled_job_shows_its_summary_at_once(kept, running, terminal):
    finish(kept, running)
    monitor = terminal("--job", running)
    code, left = monitor.end()
    assert code == 0
    assert "all finished" in left
    assert "\x1b[?1049h" not in monitor.drawn


def test_no_follow_prints_one_frame(running, terminal):
    code, left = terminal("--job", running, "--no-follow").end()
    assert code == 0
    assert "page 4" in left
    assert "\x1b[?1049h" not in left


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_switched_off(kept, running, terminal, environment):
    finish(kept, running)
    _, left = terminal("--job", running, **environment).end()
    assert "2 of 2 finished" in left
    assert not re.search(r"\x1b\[[0-9;]*m", left)


def test_a_terminal_without_unicode_gets_ascii(running, terminal):
    code, left = terminal("--job", running, "--no-follow", PYTHONIOENCODING="ascii").end()
    assert code == 0
    assert left.isascii()
    assert "====" in left
