"""The files by which a worker's main process reads which writes wait in its living children."""

import os
import subprocess
import sys
import threading

import pytest

from celery_statemanager.integration import requests
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.pending_files import PendingFiles, remove_folder

PATIENCE = 20

CHILD = """
import sys
from celery_statemanager.integration.pending_files import PendingFiles

files = {name: PendingFiles(name) for name in ("shop", "other")}
for line in sys.stdin:
    app, command, *names = line.split()
    files[app].add(*names) if command == "add" else files[app].replace(names)
    print("done", flush=True)
"""


@pytest.fixture
def main_process(monkeypatch, tmp_path):
    """Make this process a worker's main process with its own folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(requests.WORKER_ID, "")
    requests.name_worker()
    return tmp_path


@pytest.fixture
def pending(main_process):
    return PendingFiles("shop")


@pytest.fixture
def child(main_process):
    """Start a child that executes lines of the form ``app add|replace names``."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(main_process)},
    )

    def report(text, app="shop"):
        process.stdin.write(f"{app} {text}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    yield process, report
    process.communicate(timeout=PATIENCE)


class Recorder(PendingFiles):
    """Records the reports instead of writing them."""

    def __init__(self):
        super().__init__(None)
        self.reports = []

    def replace(self, names):
        self.reports.append([*names])

    def add(self, name):
        self.reports.append(name)


def test_main_process_reads_what_its_children_report(child, pending):
    _, report = child
    assert pending.of_children() == []
    report("replace b a")
    assert pending.of_children() == ["a", "b"]
    report("replace a")
    assert pending.of_children() == ["a"]
    report("replace")
    assert pending.of_children() == []


def test_report_of_a_killed_child_is_ignored_and_removed(child, pending, main_process):
    process, report = child
    report("replace a")
    process.kill()
    process.wait(PATIENCE)
    assert pending.of_children() == []
    remove_folder()
    assert list(main_process.iterdir()) == []


def test_main_process_writes_no_file(pending, main_process):
    pending.replace(["a"])
    pending.add("b")
    assert list(main_process.iterdir()) == []


def test_added_cells_are_read_in_addition_to_the_reported_ones(child, pending):
    _, report = child
    report("replace a")
    report("add b")
    report("add c")
    assert pending.of_children() == ["a", "b", "c"]
    report("replace b")
    assert pending.of_children() == ["b"]


def test_cells_of_another_app_are_not_read(child, pending):
    _, report = child
    report("replace a")
    report("replace b", app="other")
    report("add c", app="other")
    assert pending.of_children() == ["a"]
    report("replace")
    assert PendingFiles("other").of_children() == ["b", "c"]


def test_managers_with_the_same_app_name_have_separate_reports(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(requests.WORKER_ID, f"host:{os.getppid()}:ab")
    first, second = PendingFiles("shop"), PendingFiles("shop")
    first.replace(["a"])
    second.replace(["b"])
    assert first.of_children() == ["a", "b"]
    second.replace(())
    assert first.of_children() == ["a"]


def test_incomplete_line_is_ignored_until_it_is_complete(child, pending, main_process):
    process, report = child
    report("add a")
    (file,) = main_process.glob(f"*/*-{process.pid}-*")
    with file.open("a") as half:
        half.write('"b')
        half.flush()
        assert pending.of_children() == ["a"]
        half.write('"\n')
    assert pending.of_children() == ["a", "b"]


def test_backlog_reports_a_write_until_it_is_made():
    recorder = Recorder()
    backlog = Backlog(recorder)
    backlog.put(("cell", "end"), lambda: None)
    backlog.flush(PATIENCE)
    assert recorder.reports == [[], "cell", []]


def test_new_write_reports_only_its_own_name():
    """The complete list follows at intervals and when it is empty, so the cost is linear in the number of writes."""
    recorder, up = Recorder(), threading.Event()
    backlog = Backlog(recorder, report_every=3_600.0)
    backlog.put(("a", "end"), lambda: up.wait(PATIENCE))
    for name in "bc":
        backlog.put((name, "end"), lambda: None)
    assert recorder.reports == [[], "a", "b", "c"]
    up.set()
    backlog.flush(PATIENCE)
    assert recorder.reports[4:] == [["b", "c"], []]


def test_child_that_cannot_report_still_makes_its_writes(monkeypatch, tmp_path, caplog):
    """A full or read-only disk does not fail a task (rule R18)."""
    no_folder = tmp_path / "file"
    no_folder.touch()
    monkeypatch.setattr("tempfile.tempdir", str(no_folder))
    monkeypatch.setenv(requests.WORKER_ID, f"host:{os.getpid() + 1}:ab")
    backlog, written = Backlog(PendingFiles("shop")), threading.Event()
    backlog.put(("cell", "end"), written.set)
    assert written.wait(PATIENCE)
    assert "cannot report which writes wait in this process" in caplog.text
