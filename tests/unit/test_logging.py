"""Log records carry job, row and tag as fields that a log search can use."""

import ast
import logging
import threading
import uuid
from pathlib import Path

import pytest
from celery import Celery

import celery_statemanager
from celery_statemanager import (
    ConfigurationError,
    Manager,
    StatefulTask,
    StateManager,
    Status,
    StoreError,
    StoreUnavailable,
    open_store,
)
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.records import new_job
from celery_statemanager.testing import FaultyStore, WrappedStore

ABOUT_NO_JOB = {
    "the connection for notifications is lost, subscriptions reconnect: %s",
    "%s is not in INSTALLED_APPS: the tables of states are created when they are used, not by a migration",
    (
        "%s does not keep its data in the database %r: submit(using=%r) creates jobs after the commit, and a process "
        "that dies between the two creates none; set statemanager_store_url to django://%s to avoid that"
    ),
    "check the store: %s",
    "sweep: cannot count the messages in queue %r: %s",
    "sweep: cannot write the notes about lost messages, they are found later: %s",
    "the store has lost the records of workers: no worker counts as dead for one lease",
    (
        "cannot read the record of worker %s (written by another release): its running tasks are not reclaimed while "
        "its lease is valid, its received messages only by a process of its release"
    ),
    "%s failed, will retry",
    "%s failed, will retry: %s",
    "%s recovered",
    "cannot answer a request: %s",
    "%s; until then statemanager_on_lost applies to it, and submit rejects it",
    "%s; until then neither has an effect, and submit rejects it",
    "NO_ROOM[kind]",
    "garbage collected: %s",
    "cannot read the header %r of a message (%s): its task is not tracked",
    (
        "the pool %s is not one of %s: this package is not tested with it. If it runs several tasks in one thread, states "
        "are written only where the context (contextvars) identifies the running task; other states are not written, "
        "and their tasks may end LOST. Use another pool, or check the states of a test job"
    ),
    "migrated: %s",
    ("sweep: %d attempts marked as LOST, %d messages due again, callbacks of %d jobs published, %d messages published"),
    "app %r: unknown setting %s has no effect%s",
    (
        "the store did not recover in time: the states of %d cells are lost; a sweep marks their tasks as LOST or "
        "publishes them again"
    ),
    "cannot report which writes wait in this process: %s; %s",
    "the children cannot report which writes wait in them: %s; %s; %s",
}
"""Log lines about a worker, a store or a process as a whole."""

PACKAGE = Path(celery_statemanager.__file__).parent


def log_calls():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = node.func.value
                if isinstance(on, ast.Name) and on.id == "logger" and node.func.attr in dir(logging.Logger):
                    yield path, node


CALLS = [
    pytest.param(call, id=f"{path.relative_to(PACKAGE)}:{call.lineno}")
    for path, call in log_calls()
    if call.func.attr in ("debug", "info", "warning", "error", "exception", "log")
]


def test_log_calls_are_found():
    assert len(CALLS) > 15


@pytest.mark.parametrize("call", CALLS)
def test_each_log_call_has_job_fields_or_concerns_no_job(call):
    first = call.args[call.func.attr == "log"]
    text = first.value if isinstance(first, ast.Constant) else ast.unparse(first)
    assert text in ABOUT_NO_JOB or "extra" in {each.arg for each in call.keywords}


def test_the_log_fields_of_a_cell():
    job = new_job("etl-42", 3, ("a",))
    assert Binding(job.ref, 2, "a").log_extra == {"job_id": "etl-42", "task_index": 2, "tag": "a"}


def test_a_state_that_waits_for_the_store_is_logged_with_its_cell(caplog):
    backlog, tried = Backlog(), threading.Event()

    def write():
        if not tried.is_set():
            tried.set()
            raise StoreUnavailable("down")

    with caplog.at_level(logging.WARNING, "celery_statemanager"):
        backlog.put(("cell", "end"), write, {"job_id": "etl-42", "task_index": 3, "tag": "a"})
        backlog.flush(10)
    (record,) = caplog.records
    assert (record.job_id, record.task_index, record.tag) == ("etl-42", 3, "a")


def test_a_lost_subscription_connection_is_logged_with_its_job(caplog):
    class Fragile(WrappedStore):
        def watch(self, ref, scope, since=None):
            watch = super().watch(ref, scope, since)

            def lost(timeout):
                watch.read = type(watch).read.__get__(watch)
                raise StoreUnavailable("gone")

            watch.read = lost
            return watch

    store = Fragile(open_store("memory://"))
    manager = Manager.create(store, "etl-42", num_tasks=1, task_index=0)
    manager.set_state("a", Status.FINISHED)
    with caplog.at_level(logging.WARNING, "celery_statemanager"), manager.subscribe() as events:
        assert events.get(timeout=1).replay
        assert events.get(timeout=0) is None
    assert [record.job_id for record in caplog.records] == ["etl-42"]


@pytest.mark.parametrize("kind", [StoreError, ConfigurationError])
def test_a_store_error_fails_no_task_and_is_logged_in_one_line(kind, caplog):
    app = Celery("unavailable", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = faulty = FaultyStore(states.store)

    @app.task(base=StatefulTask, bind=True, shared=False)
    def work(self):
        self.state.set(5)

    def refuse(_):
        raise kind("no credentials: run this")

    faulty.at("begin", refuse, times=9)
    faulty.at("write", refuse, times=9)
    with caplog.at_level(logging.WARNING, logger="celery_statemanager"):
        states.submit([work.s()])
    assert not [each for each in caplog.records if each.name.startswith("celery.")]
    ours = [each for each in caplog.records if each.name.startswith("celery_statemanager")]
    assert len(ours) == 3  # at the begin, in the body, at the end
    for record in ours:
        assert record.getMessage().endswith(": no credentials: run this")
        assert not record.exc_info


@pytest.fixture
def task_without_job():
    """Return a function that creates a task, and a way to run it for a job that the app's store does not contain."""

    def task_without_job(*, tracked):
        app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
        app.conf.update(statemanager_store_url="memory://")
        if tracked:
            StateManager(app)
        job, ran = new_job("etl-42", 2), []

        @app.task(base=StatefulTask, shared=False)
        def work():
            ran.append(1)

        def run(row):
            return work.apply(headers={HEADER: Binding(job.ref, row, "a").to_header()})

        return run, ran

    return task_without_job


def test_an_app_without_a_state_manager_is_logged_once(task_without_job, caplog):
    run, ran = task_without_job(tracked=False)
    StateManager(Celery("another", set_as_current=False))
    run(0), run(1)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "has no StateManager: the states of its tasks are not written; call StateManager(app)" in record.getMessage()
    assert record.job_id == "etl-42"
    assert len(ran) == 2


def test_a_job_missing_from_the_workers_store_is_logged_once(task_without_job, caplog):
    run, ran = task_without_job(tracked=True)
    with caplog.at_level(logging.WARNING, "celery_statemanager"):
        run(0), run(1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    text = "job 'etl-42' is not in this worker's store, <MemoryStore>: it was deleted, or submitted with another"
    assert record.getMessage().startswith(text)
    assert record.job_id == "etl-42"
    assert not ran
