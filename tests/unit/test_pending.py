"""What waits in a worker's children is told to its main process, as long as they live."""

import os
import subprocess
import sys
import threading

import pytest

from celery_statemanager.integration import backlog as pending
from celery_statemanager.integration import requests
from celery_statemanager.integration.backlog import Backlog

PATIENCE = 20


@pytest.fixture
def main_process(monkeypatch, tmp_path):
    """Be a worker's main process, with folders of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(requests.WORKER_ID, "")
    requests.name_worker()
    return tmp_path


@pytest.fixture
def child(main_process):
    """Give a child that tells what it reads, a line a time; what follows a plus is one more."""
    code = "import sys\nfrom celery_statemanager.integration.backlog import publish_pending, publish_one_more\n"
    code += "for line in sys.stdin:\n"
    code += "    publish_one_more(line[1:].strip()) if line[0] == '+' else publish_pending(line.split())\n    print('told', flush=True)\n"
    environment = {**os.environ, "TMPDIR": str(main_process)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def say(text):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "told\n"

    yield process, say
    process.communicate(timeout=PATIENCE)


def test_the_main_process_hears_what_waits_in_its_children(child):
    _, say = child
    assert pending.pending_in_children() == []
    say("b a")
    assert pending.pending_in_children() == ["a", "b"]
    say("a")
    assert pending.pending_in_children() == ["a"]
    say("")
    assert pending.pending_in_children() == []


def test_a_child_that_is_killed_takes_its_word_with_it(child, main_process):
    process, say = child
    say("a")
    process.kill()
    process.wait(PATIENCE)
    assert pending.pending_in_children() == []
    pending.remove_pending_folder()
    assert list(main_process.iterdir()) == []


def test_the_main_process_itself_writes_no_file(main_process):
    pending.publish_pending(["a"])
    assert list(main_process.iterdir()) == []


def test_a_child_tells_of_one_more_beside_those_it_told_of(child):
    _, say = child
    say("a")
    say("+b")
    say("+c")
    assert pending.pending_in_children() == ["a", "b", "c"]
    say("b")
    assert pending.pending_in_children() == ["b"]


def test_what_a_child_is_just_telling_is_read_the_next_time(child, main_process):
    process, say = child
    say("+a")
    (file,) = main_process.glob(f"*/{process.pid}")
    with file.open("a") as half:
        half.write('"b')
        half.flush()
        assert pending.pending_in_children() == ["a"]
        half.write('"\n')
    assert pending.pending_in_children() == ["a", "b"]


def test_a_backlog_tells_what_waits_until_it_is_written():
    heard = []
    backlog = Backlog(heard.append, heard.append)
    backlog.put(("cell", "end"), lambda: None)
    backlog.flush(PATIENCE)
    assert heard == [(), "cell", []]


def test_thousands_that_wait_cost_no_thousands_of_lists(monkeypatch):
    """Of one more its name is told, at once; of fewer a list now and then, and of none at once."""
    monkeypatch.setattr(pending, "TOLD_EVERY", 3_600.0)
    heard, up = [], threading.Event()
    backlog = Backlog(lambda names: heard.append([*names]), heard.append)
    backlog.put(("a", "end"), lambda: up.wait(PATIENCE))
    for name in "bc":
        backlog.put((name, "end"), lambda: None)
    assert heard == [[], "a", "b", "c"]
    up.set()
    backlog.flush(PATIENCE)
    assert heard[4:] == [["b", "c"], []]


def test_a_child_that_cannot_tell_has_written_what_waits_all_the_same(monkeypatch, tmp_path):
    """A full disk, a read-only one: no trouble of the task's (rule R18)."""
    no_folder = tmp_path / "file"
    no_folder.touch()
    monkeypatch.setattr("tempfile.tempdir", str(no_folder))
    monkeypatch.setenv(requests.WORKER_ID, f"host:{os.getpid() + 1}:ab")
    backlog, written = Backlog(pending.publish_pending, pending.publish_one_more), threading.Event()
    backlog.put(("cell", "end"), written.set)
    assert written.wait(PATIENCE)
