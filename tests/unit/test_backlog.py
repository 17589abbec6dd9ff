"""The backlog: which writes wait for an unavailable store."""

import gc
import os
import threading
import weakref

import pytest
from celery import Celery

from celery_statemanager import StateManager, StoreUnavailable
from celery_statemanager.integration.backlog import Backlog, flush_all

PATIENCE = 10


def new_backlog(**options):
    """Create a backlog that retries at once."""
    return Backlog(**{"avoid_for": 0.0, "first_delay": 0.01, "longest_delay": 0.01, **options})


@pytest.fixture
def backlog():
    return new_backlog()


class Store:
    """Accepts writes while it is up."""

    def __init__(self):
        self.up = threading.Event()
        self.written = []

    def write(self, what):
        if not self.up.is_set():
            raise StoreUnavailable("down")
        self.written.append(what)


def test_slow_write_does_not_make_the_store_count_as_down(backlog):
    begun, go_on = threading.Event(), threading.Event()
    backlog.put(("cell", "outcome"), lambda: (begun.set(), go_on.wait(PATIENCE)))
    assert begun.wait(PATIENCE)
    assert not backlog.store_is_down
    done = []
    backlog.now_or_later(("other", "end"), lambda: done.append(1))
    assert done == [1]
    go_on.set()
    backlog.flush(PATIENCE)


def test_newest_write_of_each_kind_is_made_when_the_store_is_back(backlog):
    store = Store()
    for progress in range(5):
        backlog.now_or_later(("cell", "state"), lambda progress=progress: store.write(progress))
    backlog.now_or_later(("cell", "end"), lambda: store.write("end"))
    assert backlog.store_is_down
    assert backlog.cells() == ["cell"]
    store.up.set()
    backlog.flush(PATIENCE)
    assert store.written == [4, "end"]
    assert not backlog.store_is_down


def test_store_is_not_avoided_after_a_successful_write():
    backlog, store = new_backlog(avoid_for=3600.0), Store()
    backlog.now_or_later(("cell", "end"), lambda: store.write("end"))
    store.up.set()
    backlog.flush(PATIENCE)
    assert not backlog.store_is_down


def test_rejected_write_does_not_block_the_others(backlog):
    done = []

    def fail():
        raise ValueError("no")

    backlog.put(("a", "end"), fail)
    backlog.put(("b", "end"), lambda: done.append("b"))
    backlog.flush(PATIENCE)
    assert done == ["b"]


def test_error_other_than_an_outage_is_raised(backlog):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        backlog.now_or_later(("a", "end"), fail)


def test_oldest_write_is_dropped_when_too_many_wait(caplog):
    backlog, store = new_backlog(max_writes=2), Store()
    for name in "abc":
        backlog.put((name, "end"), lambda name=name: store.write(name))
    assert backlog.cells() == ["b", "c"]
    assert "more than 2 writes wait for the store: the oldest, of cell a, is dropped" in caplog.text
    store.up.set()
    backlog.flush(PATIENCE)


def test_flush_stops_waiting_after_its_timeout(backlog, caplog):
    backlog.put(("a", "end"), lambda: Store().write("never"))
    backlog.flush(0.05)
    assert "the states of 1 cells are lost" in caplog.text
    backlog.clear()


def test_thread_ends_when_no_write_waits_and_the_next_write_starts_another(backlog):
    for number in range(3):
        threads = []
        backlog.put((f"cell {number}", "end"), lambda threads=threads: threads.append(threading.current_thread()))
        backlog.flush(PATIENCE)
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive()


def test_writes_of_one_backlog_do_not_wait_for_the_store_of_another(backlog):
    down, up, other = Store(), Store(), new_backlog()
    backlog.now_or_later(("a", "end"), lambda: down.write("late"))
    assert backlog.store_is_down
    assert not other.store_is_down
    up.up.set()
    other.now_or_later(("b", "end"), lambda: up.write("at once"))
    assert up.written == ["at once"]
    down.up.set()
    backlog.flush(PATIENCE)


def test_flush_of_all_backlogs_writes_the_others_while_one_store_is_down(caplog):
    """Each has its own thread, so an unavailable store takes no time from the others."""
    down, ups = Store(), [Store() for _ in range(3)]
    backlogs = [new_backlog() for _ in range(4)]
    for backlog, store in zip(backlogs, [down, *ups], strict=True):
        backlog.now_or_later(("cell", "end"), lambda store=store: store.write("end"))
    for store in ups:
        store.up.set()
    flush_all(1.0)
    assert [store.written for store in (down, *ups)] == [[], ["end"], ["end"], ["end"]]
    assert caplog.text.count("the states of 1 cells are lost") == 1
    down.up.set()
    flush_all(PATIENCE)
    assert down.written == ["end"]


def test_forked_child_has_no_waiting_writes():
    backlogs, store = [new_backlog(), new_backlog()], Store()
    for backlog in backlogs:
        backlog.now_or_later(("a", "end"), lambda: store.write("late"))
    child = os.fork()
    if child == 0:
        os._exit(sum(len(backlog.cells()) + backlog.store_is_down for backlog in backlogs))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [backlog.cells() for backlog in backlogs] == [["a"], ["a"]]
    store.up.set()
    flush_all(PATIENCE)
    assert store.written == ["late", "late"]


def test_unreferenced_manager_and_its_backlog_are_garbage_collected():
    states = StateManager(Celery("collected", broker="memory://", set_as_current=False))
    states.backlog.put(("cell", "end"), lambda: None)
    thread, references = states.backlog._thread, [weakref.ref(states), weakref.ref(states.backlog)]
    states.backlog.flush(PATIENCE)
    if thread is not None:
        thread.join(PATIENCE)
    del states
    gc.collect()
    assert [reference() for reference in references] == [None, None]
