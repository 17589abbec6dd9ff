"""What several threads of one process make together at its first use: one store, one Manager."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery

from celery_statemanager import Manager, StatefulTask, StateManager
from celery_statemanager.integration import app as app_module
from celery_statemanager.integration.binding import Binding
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.kit import PATIENCE

THREADS = 4
LONG_ENOUGH = 0.2
"""Seconds for a second thread to enter what the first one is inside of, if it may."""


class Crowd:
    """Threads that begin together, and a place where the first one waits for another to be there too."""

    def __init__(self):
        self.inside = 0
        self._start = threading.Barrier(THREADS)
        self._two_inside = threading.Event()

    def enter(self):
        self.inside += 1
        if self.inside > 1:
            self._two_inside.set()
        self._two_inside.wait(LONG_ENOUGH)

    def all_at_once(self, action):
        """Let all threads do something at the same time; return what each got."""

        def act(_):
            self._start.wait(PATIENCE)
            return action()

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(act, range(THREADS)))


@pytest.mark.parametrize(
    ("name", "made_by"), [("store", "open_store"), ("metrics", "find_metrics"), ("settings", "Settings.from_app")]
)
def test_threads_at_first_use_get_the_same(monkeypatch, name, made_by):
    states = StateManager(Celery("eager", set_as_current=False, statemanager_store_url="memory://"))
    crowd = Crowd()
    holder, _, attribute = made_by.rpartition(".")
    holder = getattr(app_module, holder) if holder else app_module
    make = getattr(holder, attribute)

    def make_slowly(*args, **options):
        crowd.enter()
        return make(*args, **options)

    monkeypatch.setattr(holder, attribute, make_slowly)
    found = crowd.all_at_once(lambda: getattr(states, name))
    assert crowd.inside == 1
    assert all(each is found[0] for each in found)


def test_threads_of_a_task_get_the_same_manager():
    app = Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = FaultyStore(states.store)
    crowd = Crowd()
    found, entered = [], []

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        state = self.state
        states.store.at("get_job", lambda _: crowd.enter(), times=THREADS)
        found.extend(crowd.all_at_once(lambda: state.manager))
        entered.append(crowd.inside)

    ref = Manager.create(states.store, "etl", num_tasks=1, tags=("default",)).ref
    Binding(ref, 0, "default").bind(task.s()).delay()
    assert entered == [1]
    assert len(found) == THREADS
    assert all(each is found[0] for each in found)
