"""``on_lost``: the policy for the messages of a lost worker, and invalid values of it."""

import logging
from types import SimpleNamespace

import pytest
from celery import Celery, _state, shared_task

from celery_statemanager import ConfigurationError, JobNotFound, StatefulTask, StateManager
from celery_statemanager.integration import pools, requests
from celery_statemanager.integration.redelivery import requeues
from celery_statemanager.integration.worker import main

TYPO = (
    "task 'shared.typo': on_lost must be one of auto, mark, requeue, not 'reqeue': correct it where the task "
    "is declared, or remove it to use statemanager_on_lost"
)


def new_app(name):
    return Celery(name, set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")


def run(*_): ...


@pytest.fixture
def typo():
    """A shared task with an invalid policy, in all apps of the process until the end of the test."""
    before = set(_state._on_app_finalizers)
    yield shared_task(name="shared.typo", base=StatefulTask, on_lost="reqeue")(run)
    _state._on_app_finalizers.intersection_update(before)


@pytest.fixture
def ours():
    """An app that does not use the shared task."""
    app = new_app("ours")

    @app.task(shared=False, name="well", base=StatefulTask)
    def well(): ...

    return app


@pytest.mark.parametrize(
    ("own", "setting", "late", "expected"),
    [
        (None, "auto", True, True),
        (None, "auto", False, False),
        (None, "requeue", False, True),
        (None, "mark", True, False),
        ("mark", "requeue", True, False),
        ("requeue", "mark", False, True),
    ],
)
def test_policy_of_the_task_overrides_the_setting(own, setting, late, expected):
    app = Celery("policy", set_as_current=False)

    @app.task(shared=False, base=StatefulTask, acks_late=late, on_lost=own)
    def task(): ...

    assert requeues(task, setting) is expected


def test_class_with_an_invalid_policy_is_rejected_where_it_is_defined():
    with pytest.raises(ConfigurationError, match="'Resize': on_lost must be one of auto, mark, requeue, not 'reqeue'"):
        type("Resize", (StatefulTask,), {"on_lost": "reqeue"})


@pytest.mark.usefixtures("typo")
@pytest.mark.parametrize("tracked", [True, False])
def test_shared_task_with_an_invalid_policy_does_not_affect_other_tasks(ours, tracked):
    if tracked:
        assert StateManager(ours).submit([ours.tasks["well"].s()]).wait(0).finished == 1
    else:
        assert ours.tasks["well"].apply().successful()
    assert {"shared.typo", "celery.backend_cleanup"} <= ours.tasks.keys()


@pytest.mark.usefixtures("typo")
def test_submit_rejects_an_invalid_policy_and_names_the_task(ours):
    states = StateManager(ours)
    well, typo = (ours.tasks[name].s() for name in ("well", "shared.typo"))
    for members, callbacks in (([well, typo], {}), ([well | typo], {}), ([well], {"on_settled": typo})):
        with pytest.raises(ConfigurationError) as rejected:
            states.submit(members, job_id="none", **callbacks)
        assert str(rejected.value) == TYPO
    with pytest.raises(JobNotFound):
        states.job("none")


@pytest.mark.usefixtures("typo")
def test_worker_logs_an_invalid_policy_when_it_starts_and_uses_the_setting(ours, caplog, monkeypatch):
    StateManager(ours)
    monkeypatch.setenv(requests.WORKER_ID, "")
    try:
        main.on_init(sender=SimpleNamespace(app=ours, pool_cls="solo", time_limit=None))
    finally:
        pools.leave()
    logged = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert logged == [f"{TYPO}; until then statemanager_on_lost applies to it, and submit rejects it"]
    task = ours.tasks["shared.typo"]
    assert [requeues(task, setting) for setting in ("requeue", "mark")] == [True, False]
