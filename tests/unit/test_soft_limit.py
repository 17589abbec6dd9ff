"""A soft time limit may interrupt the begin of any function; the task's end state is written nevertheless."""

import uuid
from functools import partial
from pathlib import Path

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

from celery_statemanager import Manager, StatefulTask, StateManager, Status
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.testing.contract_signals import interrupt, is_ours
from celery_statemanager.testing.kit import PATIENCE


def succeed(self):
    self.state.set(40, "nearly")


def fail(self):
    raise ValueError("no such file")


def ignore(self):
    raise Ignore("not today")


def reject(self):
    raise Reject("not today", requeue=False)


def retry(self):
    raise self.retry(countdown=60)


def is_guarded(frame):
    """Return whether a frame runs our code, except the guard that Celery calls: its first line is unguarded."""
    return is_ours(frame) and (frame.f_code.co_name, Path(frame.f_code.co_filename).name) != ("call", "signals.py")


def run_interrupted(run, number):
    """Run a task interrupted at a function; return whether it was, and whether that ended the task for Celery."""
    outcomes = []
    interrupted = interrupt(lambda: outcomes.append(run()), number, SoftTimeLimitExceeded, is_guarded)
    return interrupted, isinstance(getattr(outcomes[0].info, "retval", None), SoftTimeLimitExceeded)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator interrupted as it closes
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (succeed, Status.FINISHED),
        (fail, Status.FAILED),
        (ignore, Status.REJECTED),
        (reject, Status.REJECTED),
        (retry, Status.STARTED),
    ],
)
def test_a_soft_time_limit_during_a_write_does_not_lose_the_end_state(body, status):
    app = Celery("interrupted", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    task = app.task(bind=True, base=StatefulTask, name="task", shared=False)(body)
    trace = build_tracer(task.name, task, app=app)
    number, interrupted = 0, True
    while interrupted:
        job = Manager.create(states.store, f"job {number}", num_tasks=1, tags=("work",))
        binding = Binding(job.ref, 0, "work")
        request = {"id": binding.celery_task_id, HEADER: binding.to_header(), "delivery_info": {}, "retries": 0}
        interrupted, limited = run_interrupted(partial(trace, binding.celery_task_id, (), {}, request), number)
        states.backlog.flush(PATIENCE)
        assert not states.store.get_cell(job.ref, "work", 0).open, number
        assert job.get_state("work", 0).status == (Status.TIMED_OUT if limited else status), number
        number += 1
    assert number > 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_soft_time_limit_at_the_end_of_a_stage_does_not_lose_the_next_one(tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    app = Celery("interrupted", broker="memory://", set_as_current=False, statemanager_store_url=url)
    states = StateManager(app)
    app.conf.task_default_queue = f"queue-{uuid.uuid4().hex}"

    @app.task(base=StatefulTask, name="stage", shared=False)
    def stage(*_):
        return 1

    trace = build_tracer(stage.name, stage, app=app)
    number, interrupted, outcomes = 0, True, set()
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        while interrupted:
            job = states.submit([states.tag(stage.s(), "a") | states.tag(stage.s(), "b")], job_id=f"job {number}")
            first = queue.get(no_ack=True)
            request = {**first.headers, "delivery_info": {}}
            interrupted, limited = run_interrupted(partial(trace, first.headers["id"], (), {}, request), number)
            states.backlog.flush(PATIENCE)
            published = [message.headers["id"] for message in iter(lambda: queue.get(no_ack=True), None)]
            due = states.store.get_outbox(job.manager.ref).returned.begun
            outcome = limited, job.get_state("b", 0).status, bool(published) or bool(due)
            assert outcome in {(True, Status.TIMED_OUT, False), (False, Status.NOT_STARTED, True)}, number
            outcomes.add((*outcome, bool(due)))
            number += 1
    assert len(outcomes) == 3, "published, due again, and not run"
