"""``self.state.manager``: one Manager for each execution, whose errors stop the task."""

import pytest
from celery import Celery

from celery_statemanager import Manager, StatefulTask, StateManager, Status, current_state
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.kit import PATIENCE

FINISHED = Status.FINISHED


@pytest.fixture
def app():
    return Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")


@pytest.fixture
def states(app):
    states = StateManager(app)
    states.store = FaultyStore(states.store)
    return states


def is_open(job, tag):
    return job.manager.store.get_cell(job.manager.ref, tag, 0).open


def test_an_attempt_begun_by_the_manager_of_a_task_ends_with_a_terminal_status(app, states):
    @app.task(shared=False, base=StatefulTask, bind=True, tag="work")
    def task(self):
        assert self.state.manager.begin("extra") == 1
        current_state().manager.set_state("extra", FINISHED)

    job = states.submit([task.s()])
    assert job.get_state("extra", 0).status == FINISHED
    assert not is_open(job, "extra")


def test_the_manager_of_a_task_reads_the_job_once_per_run(app, states):
    reads = []
    seen = []

    @app.task(shared=False, base=StatefulTask, bind=True, tag="work")
    def task(self):
        states.store.at("get_job", reads.append, times=100)
        seen.append({id(self.state.manager) for _ in range(5)} | {id(current_state().manager)})
        assert [self.state.num_tasks for _ in range(5)] == [2] * 5

    states.submit([task.s(), task.s()])
    assert [len(each) for each in seen] == [1, 1]
    assert len(reads) <= 2 + 4, "one read for each task, and those of submit"


def test_begin_with_the_tag_of_the_task_returns_its_open_attempt(app, states):
    @app.task(shared=False, base=StatefulTask, bind=True, tag="work")
    def task(self):
        assert self.state.manager.begin("work") == self.state.attempt == 1
        assert self.state.manager.begin("work") == 1
        self.state.set(50)

    job = states.submit([task.s()])
    assert (job.get_state("work", 0).status, job.get_state("work", 0).attempt) == (FINISHED, 1)
    assert not is_open(job, "work")


def test_begin_with_the_tag_of_the_task_begins_an_attempt_that_failed_to_begin(app, states):
    given = []

    @app.task(shared=False, base=StatefulTask, bind=True, tag="work")
    def task(self):
        given.append((self.state.attempt, self.state.manager.begin("work"), self.state.attempt))

    states.store.lose_response("begin", applied=False)
    job = states.submit([task.s()])
    assert given == [(None, 1, 1)]
    assert job.wait(PATIENCE).finished == 1


USES = {
    "begin": lambda manager: manager.begin("extra"),
    "set_state": lambda manager: manager.set_state("work", 5),
    "set_state of another tag": lambda manager: manager.set_state("extra", 5),
    "progress": lambda manager: manager.progress("work", 1, 2),
    "get_state": lambda manager: manager.get_state(),
    "list_states": lambda manager: manager.list_states(),
    "summary": lambda manager: manager.summary(),
    "subscribe": lambda manager: manager.subscribe(),
    "synchronize": lambda manager: manager.synchronize("work", 0),
    "tombstone_job": lambda manager: manager.tombstone_job(),
    "delete_job": lambda manager: manager.delete_job(),
}


@pytest.mark.parametrize("use", USES)
def test_a_call_that_finds_the_job_deleted_stops_the_task(app, states, use):
    ran = []

    @app.task(shared=False, base=StatefulTask, bind=True, tag="work", autoretry_for=(Exception,), max_retries=2)
    def task(self):
        manager = self.state.manager
        states.job("etl").delete()
        ran.append(use)
        USES[use](manager)
        ran.append("continued")

    states.submit([task.s()], job_id="etl")
    assert ran == [use]


REFUSALS = {
    "begin of a finished cell": (FINISHED, lambda manager: manager.begin("extra"), "BeginRefused"),
    "write after another attempt": (50, lambda manager: manager.set_state("extra", 5), "AttemptSuperseded"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_about_another_cell_fails_the_task(app, states, refusal):
    status, use, error = REFUSALS[refusal]

    @app.task(shared=False, base=StatefulTask, bind=True, tag="work")
    def task(self):
        manager = self.state.manager
        manager.begin("extra")
        other = Manager.open(states.store, "etl", task_index=0)
        other.begin("extra")
        other.set_state("extra", status)
        use(manager)

    job = states.submit([task.s()], job_id="etl")
    state = job.get_state("work", 0)
    assert state.status == Status.FAILED
    assert state.message.startswith(f"{error}: ")
    assert not is_open(job, "work")
