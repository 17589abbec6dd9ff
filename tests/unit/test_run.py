"""One execution of a task, and the store of its worker's lease."""

from celery import Celery

from celery_statemanager import Manager, StateManager, open_store
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.task.run import Run
from celery_statemanager.records import Delivery
from celery_statemanager.testing import FaultyStore


def test_an_assigned_store_is_not_opened_again():
    """The lease of a pool of greenlets must be in the store that its tasks use."""
    app = Celery("assigned", set_as_current=False, statemanager_store_url="sqlite:///unused.db")
    states = StateManager(app)
    states.store = FaultyStore(open_store("memory://"))
    assert states.open_own_store() is states.store


def test_an_execution_records_only_messages_of_its_row():
    app = Celery("sent", set_as_current=False, statemanager_store_url="memory://")
    job = Manager.create(StateManager(app).store, "job", num_tasks=20, tags=("a", "b"))
    own = Binding(job.ref, 1, "a")
    run = Run(StateManager(app), own, Delivery(), None, None, None)
    following = Binding(job.ref, 1, "b", 1).celery_task_id
    for task_id in (following, Binding(job.ref, 11, "a").celery_task_id, "another", None):
        run.note_sent(task_id)
    assert run.sent == {following}
