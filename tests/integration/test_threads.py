"""Several threads that use a StateManager or a task's Manager for the first time share one object."""

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
GRACE = 0.2
"""Seconds in which a second thread would enter a section that is not locked."""


class Crowd:
    """Threads that start together, and a section in which the first one waits for a second one."""

    def __init__(self):
        self.inside = 0
        self._start = threading.Barrier(THREADS)
        self._two_inside = threading.Event()

    def enter(self):
        self.inside += 1
        if self.inside > 1:
            self._two_inside.set()
        self._two_inside.wait(GRACE)

    def all_at_once(self, action):
        """Call an action in all threads at the same time; return the results."""

        def act(_):
            self._start.wait(PATIENCE)
            return action()

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(act, range(THREADS)))


@pytest.mark.parametrize(
    ("name", "made_by"), [("store", "open_store"), ("metrics", "find_metrics"), ("settings", "Settings.from_app")]
)
def test_concurrent_first_reads_of_a_property_compute_it_once(monkeypatch, name, made_by):
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


def test_concurrent_first_reads_of_the_manager_create_one():
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
