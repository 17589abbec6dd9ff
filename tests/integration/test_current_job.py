"""``states.current_job()`` returns the run of the current task or callback, never a successor with its job_id."""

import pytest
from celery import Celery

from celery_statemanager import JobNotFound, Manager, StatefulTask, StateManager
from celery_statemanager.integration.binding import Binding
from celery_statemanager.records import JobKey
from celery_statemanager.testing import FaultyStore


@pytest.fixture
def app():
    return Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")


@pytest.fixture
def states(app):
    return StateManager(app)


def replace_job(states, job_id):
    """Delete a job and create its successor, while tasks of the deleted job still run."""
    states.job(job_id).delete()
    successor = Manager.create(states.store, job_id, num_tasks=1, task_index=0, tags=("work",))
    successor.set_state("work", 7)
    return successor


def run_in(states, signature):
    """Run a task as row 0 of a new job that is not submitted."""
    job = Manager.create(states.store, "etl", num_tasks=1, tags=("work",))
    return Binding(job.ref, 0, "work").bind(signature).apply_async()


USES = {
    "cancel": lambda job: job.cancel("mine"),
    "delete": lambda job: job.delete(),
    "summary": lambda job: job.summary(),
    "wait": lambda job: job.wait(0),
    "subscribe": lambda job: job.subscribe(),
}


@pytest.mark.parametrize("base", [StatefulTask, None], ids=["stateful", "plain"])
@pytest.mark.parametrize("use", USES)
def test_the_current_job_of_a_straggler_is_not_its_successor(app, states, base, use):
    raised = []

    @app.task(shared=False, bind=True, base=base, autoretry_for=(Exception,), max_retries=1)
    def straggler(self):
        successors.append(replace_job(states, "etl"))
        try:
            USES[use](states.current_job())
        except JobNotFound as error:
            raised.append(error)
            raise

    successors = []
    result = run_in(states, straggler.s())
    assert result.state == "IGNORED"
    assert [error.job_id for error in raised] == ["etl"]
    (successor,) = successors
    assert successor.get_state("work", 0).status == 7
    assert states.store.get_job(JobKey("etl")).cancelled is None


def test_a_job_object_of_a_replaced_run_does_not_reach_the_successor(app, states):
    rejected = []

    @app.task(shared=False)
    def straggler():
        job = states.current_job()
        replace_job(states, "etl")
        for name, use in USES.items():
            try:
                use(job)
            except JobNotFound:
                rejected.append(name)

    run_in(states, straggler.s())
    assert rejected == list(USES)
    assert states.job("etl").get_state().status == 7
    assert states.store.get_job(JobKey("etl")).cancelled is None


def test_begin_of_a_replaced_run_does_not_read_the_successor(states):
    store = FaultyStore(states.store)
    manager = Manager.create(store, "etl", num_tasks=2, task_index=0, tags=("work",))
    Manager.open(store, "etl", task_index=1).begin("work")
    states.job("etl").cancel("the reason of the first run")
    store.at("begin", lambda _: replace_job(states, "etl"), after=True)
    with pytest.raises(JobNotFound):
        manager.begin("work")


def test_an_unknown_tag_is_rejected_with_the_planned_tags(app, states):
    @app.task(shared=False, base=StatefulTask, tag="ingest")
    def task(): ...

    job = states.submit([task.s()])
    for read in (job.summary, job.get_state, job.list_states):
        with pytest.raises(ValueError, match=r"has no tag 'injest': .* the planned tags are 'ingest'"):
            read("injest")


def test_a_task_of_another_app_has_no_current_job(app, states):
    other = Celery("other", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")
    found = []

    @other.task(shared=False, base=StatefulTask)
    def task():
        found.append((states.current_job(), StateManager(other).current_job().id))

    job = StateManager(other).submit([task.s()])
    assert found == [(None, job.id)]
    assert job.summary().finished == 1


@pytest.mark.parametrize("base", [StatefulTask, None], ids=["stateful", "plain"])
@pytest.mark.parametrize("immutable", [False, True], ids=["job_id", "immutable"])
def test_current_job_in_an_eager_callback_returns_its_own_run(app, states, base, immutable):
    found = []

    @app.task(shared=False, base=base)
    def callback(*args):
        found.append((states.current_job().manager.ref, args))

    @app.task(shared=False)
    def task(): ...

    run_token = "second"
    for each in ("first", run_token):
        job = states.submit(
            [task.s()], job_id="etl", run_token=each, on_settled=callback.signature(immutable=immutable)
        )
    assert found[-1] == (job.manager.ref, () if immutable else ("etl",))
    with pytest.raises(JobNotFound, match=r"runs of it: 'first', 'second'; .* states\.current_job\(\)"):
        states.job("etl")
    with pytest.raises(JobNotFound, match=r"no job 'etl' \(run token 'third'\) .*: 'first', 'second'"):
        states.job("etl", "third")
