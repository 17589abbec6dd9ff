"""What waits for a store that is down, and what does not."""

import os
import threading

import pytest

from celery_statemanager import StoreUnavailable
from celery_statemanager.integration import backlog as module
from celery_statemanager.integration.backlog import Backlog

PATIENCE = 10


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(module, "SUSPECT", 0.0)
    monkeypatch.setattr(module, "LONGEST_DELAY", 0.01)
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)


@pytest.fixture
def backlog():
    return Backlog()


class Store:
    """Takes writes while it is up."""

    def __init__(self):
        self.up = threading.Event()
        self.written = []

    def write(self, what):
        if not self.up.is_set():
            raise StoreUnavailable("down")
        self.written.append(what)


def test_what_waits_only_for_its_turn_says_nothing_about_the_store(backlog):
    begun, go_on = threading.Event(), threading.Event()
    backlog.put(("cell", "outcome"), lambda: (begun.set(), go_on.wait(PATIENCE)))
    assert begun.wait(PATIENCE)
    assert not backlog.store_is_down
    done = []
    backlog.now_or_later(("other", "end"), lambda: done.append(1))
    assert done == [1]
    go_on.set()
    backlog.flush(PATIENCE)


def test_what_fails_is_written_once_the_store_is_back_the_newest_of_each(backlog):
    store = Store()
    for progress in range(5):
        backlog.now_or_later(("cell", "word"), lambda progress=progress: store.write(progress))
    backlog.now_or_later(("cell", "end"), lambda: store.write("end"))
    assert backlog.store_is_down
    assert backlog.cells() == ["cell"]
    store.up.set()
    backlog.flush(PATIENCE)
    assert store.written == [4, "end"]
    assert not backlog.store_is_down


def test_a_store_that_took_a_write_is_asked_again_at_once(backlog, monkeypatch):
    monkeypatch.setattr(module, "SUSPECT", 3600.0)
    store = Store()
    backlog.now_or_later(("cell", "end"), lambda: store.write("end"))
    store.up.set()
    backlog.flush(PATIENCE)
    assert not backlog.store_is_down


def test_a_write_that_is_refused_does_not_hold_up_the_others(backlog):
    done = []

    def refuse():
        raise ValueError("no")

    backlog.put(("a", "end"), refuse)
    backlog.put(("b", "end"), lambda: done.append("b"))
    backlog.flush(PATIENCE)
    assert done == ["b"]


def test_what_is_not_the_stores_trouble_is_raised(backlog):
    def refuse():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        backlog.now_or_later(("a", "end"), refuse)


def test_the_oldest_is_given_up_when_too_many_wait(backlog, monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST", 2)
    store = Store()
    for name in "abc":
        backlog.put((name, "end"), lambda name=name: store.write(name))
    assert backlog.cells() == ["b", "c"]
    assert "that of cell a is lost" in caplog.text
    store.up.set()
    backlog.flush(PATIENCE)


def test_a_flush_does_not_wait_for_ever(backlog, caplog):
    backlog.put(("a", "end"), lambda: Store().write("never"))
    backlog.flush(0.05)
    assert "the states of 1 cells are lost" in caplog.text
    backlog.forget()


def test_a_forked_child_has_nothing_waiting():
    module.backlog.flush(PATIENCE)  # of what earlier tests left there
    store = Store()
    module.backlog.put(("a", "end"), lambda: store.write("late"))
    child = os.fork()
    if child == 0:
        os._exit(len(module.backlog.cells()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert module.backlog.cells() == ["a"]
    store.up.set()
    module.backlog.flush(PATIENCE)
    assert not module.backlog.store_is_down
