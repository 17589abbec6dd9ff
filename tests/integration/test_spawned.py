"""Workers whose children are fresh interpreters instead of forks of the main process."""

import pickle

import pytest
from celery import Celery
from matrix import BEFORE_5_7

from celery_statemanager import StateManager, Status
from celery_statemanager.integration import spawned

SPAWN = "app.conf.worker_pool_start_method = 'spawn'"
FORKSERVER = "import billiard; billiard.set_start_method('forkserver', force=True)"

pytestmark = pytest.mark.skipif(BEFORE_5_7, reason="Celery before 5.7 always forks")


@pytest.mark.parametrize("start_method", [SPAWN, FORKSERVER])
def test_a_child_writes_with_the_state_manager_of_the_module(project, start_method):
    shop = project(f"""
        from celery_statemanager.testing import FaultyStore

        app = new_app()
        {start_method}
        states = StateManager(app)
        states.store = FaultyStore(states.store)

        @app.task(base=StatefulTask, bind=True, tag="work")
        def work(self, n):
            own = StateManager.installed(self.app)
            note("found", f"{{os.getpid()}}-{{own is states}}-{{type(own.store).__name__}}-{{states.current_job().id}}")
            self.state.set(50, "half way")

        @app.task(base=StatefulTask)
        def done(job_id):
            note("done", states.current_job().id)
        """)
    worker = shop.start_worker("--max-tasks-per-child=2")
    job = shop.states.submit([shop.module.work.s(n) for n in range(5)], on_success=shop.done.s())
    assert shop.wait(lambda: shop.notes("done") == [job.id]), shop.log()
    assert {(each.status, each.message) for each in job.list_states()} == {(Status.FINISHED, "half way")}
    pids, *rest = zip(*(each.split("-", 3) for each in shop.notes("found")))
    assert len(set(pids)) >= 3, "children were not replaced"
    assert str(worker.process.pid) not in pids
    assert set(zip(*rest)) == {("True", "FaultyStore", job.id)}
    assert "no StateManager" not in shop.log()
    assert "DuplicateTaskNameWarning" not in shop.log()


def test_a_child_that_imports_no_module_with_a_state_manager_writes_states(project):
    tasks = """
        from celery import shared_task
        from celery_statemanager import StatefulTask, current_state

        @shared_task(base=StatefulTask, bind=True, tag="work")
        def work(self):
            self.state.set(50, "by a shared task")
        """
    shop = project(
        f"""
        app = new_app(include=["shared_tasks"])
        {SPAWN}
        states = StateManager(app)
        """,
        shared_tasks=tasks,
    )
    shop.start_worker()
    job = shop.states.submit([shop.app.signature("shared_tasks.work").set(headers={"statemanager_tag": "work"})])
    assert job.wait(60).finished == 1, shop.log()
    assert job.get_state("work", 0).message == "by a shared task"


def test_children_use_the_settings_of_the_workers_own_app(project):
    """Two apps have one name, and the main process alone changes a setting."""
    shop = project(f"""
        from celery.signals import celeryd_init

        other, app = new_app("twin"), new_app("twin")
        other.conf.update(statemanager_store_url=f"sqlite:///{{HOME}}/other.db", task_default_queue="other")
        {SPAWN}
        other_states, states = StateManager(other), StateManager(app)

        @celeryd_init.connect
        def configure(conf=None, **_):
            conf.statemanager_progress_interval = 60.0

        @app.task(base=StatefulTask, bind=True, tag="work")
        def work(self):
            settings = StateManager.installed(self.app).settings
            self.state.set(50, f"{{settings.store_url.rpartition('/')[2]}} {{settings.progress_interval}}")
        """)
    shop.start_worker()
    job = shop.states.submit([shop.module.work.s()])
    assert job.wait(60).finished == 1, shop.log()
    assert job.get_state("work", 0).message == "states.db 60.0"


def test_a_copy_of_an_app_has_a_state_manager_with_its_settings():
    app = Celery("copied", set_as_current=False, statemanager_store_url="memory://copied", statemanager_lease=7.0)
    states = StateManager(app)
    copy = pickle.loads(pickle.dumps(app))
    assert StateManager.installed(copy) not in (None, states)
    assert StateManager(copy).settings == states.settings
    spawned.adopt_originals()
    assert StateManager(copy) is states
    assert states.app is copy
    assert StateManager(app) is states


@pytest.mark.parametrize("fixups", [None, [], ("celery.fixups.django:fixup",)])
def test_the_fixups_of_an_app_stay(fixups):
    app = Celery("fixed", set_as_current=False, fixups=fixups)
    before = list(app.fixups)
    StateManager(app)
    assert list(app.fixups) == [*before, spawned.FIXUP]
