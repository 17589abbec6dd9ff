"""What a sweep does with the lost attempts of stored messages: finish, publish again, or mark them (rules R16, R19)."""

import pytest
from celery import Celery
from celery.app.backends import by_url
from celery.states import SUCCESS

from celery_statemanager import StatefulTask, StateManager, Status, leases
from celery_statemanager.integration.outbox import changed, publisher
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.leases import Report
from celery_statemanager.records import Delivery
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import workers


@pytest.fixture
def app():
    app = Celery("lost", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def states(app, clock):
    states = StateManager(app)
    states.store = MemoryStore(clock)
    return states


@pytest.fixture
def sent(monkeypatch):
    """The messages that were published."""
    sent = []
    monkeypatch.setattr(publisher, "publish", lambda app, message, producer: sent.append(message))
    return sent


def body(*_): ...


def make(app, name, **options):
    return app.task(name=name, base=StatefulTask, shared=False, **options)(body)


def lost(states, clock, *stages, **fields):
    """Submit one row whose first stage is lost with its worker."""
    member = states.tag(stages[0].s(1), "a")
    for stage in stages[1:]:
        member |= states.tag(stage.s(), "b")
    grid = Grid(states.store, states.submit([member]).manager.ref)
    leases.renew(states.store, "w", Report(), 30.0)
    grid.begin("a", 0, owner="w", **fields)
    clock.advance(3_600)
    return grid


def id_of(sent):
    return sent[0]["publish"]["headers"]["id"]


@pytest.mark.parametrize("own_backend", [True, False])
def test_an_attempt_whose_result_is_stored_has_finished_and_its_next_stage_is_published(
    app, states, clock, sent, own_backend
):
    """A task may have a result backend of its own."""
    options = {"acks_late": True}
    if own_backend:
        kind, url = by_url("cache+memory://")
        options["backend"] = kind(app=app, url=url)
        options["backend"].task_keyprefix = b"own-"
    first, second = make(app, "first", **options), make(app, "second")
    grid = lost(states, clock, first, second)
    (first.backend if own_backend else app.backend).store_result(id_of(sent), {"v": 1}, SUCCESS)
    assert not sweep(states).requeued
    assert grid.cell("a", 0).status == Status.FINISHED
    assert [each["task"] for each in sent] == ["first", "second"]
    assert sent[1]["body"].startswith('[[{"v": 1}]')


@pytest.mark.parametrize("acks_late", [True, False])
def test_the_policy_of_the_task_decides_whether_an_attempt_runs_again(app, states, clock, sent, acks_late):
    grid = lost(states, clock, make(app, "task", acks_late=acks_late))
    report = sweep(states)
    cell = grid.cell("a", 0)
    if acks_late:
        assert (report.requeued, report.published, report.marked) == (1, 1, 0)
        assert (cell.status, cell.delivery, len(sent)) == (Status.STARTED, Delivery(1), 2)
        assert cell.message == "sent again: its worker w is dead"
    else:
        assert (report.requeued, report.published, report.marked) == (0, 0, 1)
        assert (cell.status, len(sent)) == (Status.LOST, 1)
    assert workers(states.store) == {}


def test_the_policy_of_a_replacement_is_that_of_its_own_task(app, states, clock, sent):
    make(app, "other", acks_late=True)
    job = states.submit([states.tag(make(app, "task").s(1), "a")])
    message = states.blocks.messages(states.store, job.manager.ref, 0)[0]
    grid = Grid(states.store, job.manager.ref)
    grid.begin("a", 0, owner="w", delivery=Delivery(0, 1), kept=changed.kept({**message, "task": "other"}))
    clock.advance(3_600)
    assert sweep(states).requeued == 1
    assert [each["task"] for each in sent] == ["task", "other"]


def test_a_lost_message_that_was_too_large_to_be_kept_ends_its_row(app, states, clock, sent):
    grid = lost(states, clock, make(app, "task", acks_late=True), delivery=Delivery(0, 0, 1), kept=changed.TOO_LARGE)
    sweep(states)
    text = "not published: a retry or a replacement changed the message, which was too large to be kept"
    assert (grid.cell("a", 0).status, grid.cell("a", 0).message) == (Status.REJECTED, text)
    assert len(sent) == 1


def test_an_attempt_of_a_task_that_this_app_lacks_is_left_to_its_app(app, states, clock, sent, caplog):
    grid = lost(states, clock, make(app, "task", acks_late=True))
    del app.tasks["task"]
    assert not sweep(states)
    assert grid.cell("a", 0).open
    assert {*workers(states.store)} == {"w"}
    assert "has no task 'task'" in caplog.text


def test_the_next_stage_of_a_task_that_this_app_lacks_is_not_lost(app, states, clock, sent):
    """Only its own app can tell whether it has succeeded."""
    first, second = make(app, "first", acks_late=True), make(app, "second")
    grid = lost(states, clock, first, second)
    app.backend.store_result(id_of(sent), 1, SUCCESS)
    del app.tasks["second"]
    sweep(states)
    assert grid.cell("a", 0).status == Status.FINISHED
    assert sent[-1]["task"] == "second"


def test_an_error_of_the_result_backend_is_logged_and_the_policy_applies(app, states, clock, sent, caplog, monkeypatch):
    grid = lost(states, clock, make(app, "task", acks_late=True))
    monkeypatch.setattr(app.backend, "get_state", lambda _: 1 / 0)
    assert sweep(states).requeued == 1
    assert grid.cell("a", 0).delivery == Delivery(1)
    assert "cannot read the result backend" in caplog.text
