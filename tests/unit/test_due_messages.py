"""The stage of a row whose message is due, and that message (rule R19)."""

import pytest
from celery import Celery, chain

from celery_statemanager import StateManager, Status
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.outbox import changed
from celery_statemanager.integration.outbox.due import Unpublishable, due_stage, message_again, message_of
from celery_statemanager.integration.outbox.envelope import content_of
from celery_statemanager.integration.outbox.making import BINDING, REJECTED, binding_in
from celery_statemanager.integration.outbox.values import MAX_BYTES
from celery_statemanager.records import Delivery, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import Grid

FINISHED = int(Status.FINISHED)


@pytest.fixture
def states(clock):
    app = Celery("due", broker="memory://", set_as_current=False)
    states = StateManager(app)
    states.store = MemoryStore(clock)
    yield states
    app.close()


@pytest.fixture
def task(states):
    @states.app.task(name="task", shared=False)
    def task(*_, **__): ...

    return task


class Row:
    """The first row of a job, whose stages are ``a``, ``b`` and so on."""

    def __init__(self, states, *stages):
        tagged = [states.tag(stage, tag) for stage, tag in zip(stages, "abc", strict=False)]
        self.states = states
        self.grid = Grid(states.store, states.submit([chain(*tagged)]).manager.ref)
        self.stages = states.blocks.messages(states.store, self.grid.ref, 0)

    def begin(self, tag, **fields):
        return self.grid.begin(tag, 0, owner="w", delivery=self.grid.cell(tag, 0).delivery, **fields).cell.attempt

    def finish(self, tag, value=None):
        """Finish a stage, and keep its value; None if the next stage takes none."""
        last = Write.ending(tag, 0, FINISHED, attempt=self.begin(tag))
        last.next_is_due, last.value, last.publisher = True, value, "w/1.1"
        self.grid.store.write(self.grid.ref, last)

    def retry(self, tag, retries, kept=None):
        delivery = self.grid.cell(tag, 0).delivery._replace(retries=retries)
        paused = Write.returned(tag, 0, "retry", delivery, attempt=self.begin(tag))
        paused.kept = kept
        self.grid.store.write(self.grid.ref, paused)

    def send_back(self, tag):
        cell = self.grid.cell(tag, 0)
        back = Write.sent_back(tag, 0, "sent again", attempt=cell.attempt, is_open=cell.open)
        self.grid.store.write(self.grid.ref, back)

    def due(self):
        """Return the number of the stage that is due; None if none is."""
        found = due_stage(self.states, self.grid.ref, self.stages, 0)
        return None if found is None else found[0]

    def again(self):
        """Return the message that is due."""
        number, cell = due_stage(self.states, self.grid.ref, self.stages, 0)
        return message_again(self.states, self.grid.ref, self.stages, number, cell)

    def arguments(self):
        return content_of(self.states.app, self.again())[:2]

    def why_unpublishable(self):
        with pytest.raises(Unpublishable) as error:
            self.again()
        return str(error.value), error.value.binding.tag


def test_a_row_of_which_nothing_has_begun_is_due_at_its_first_stage(states, task):
    assert Row(states, task.s(1), task.s(2)).due() == 0


def test_no_stage_is_due_while_one_runs(states, task):
    row = Row(states, task.s(1), task.s(2))
    row.begin("a")
    assert row.due() is None
    row.finish("a", "1")
    row.begin("b")
    assert row.due() is None


def test_no_stage_is_due_while_a_published_retry_waits(states, task):
    row = Row(states, task.s(1), task.s(2))
    row.retry("a", 1)
    assert row.due() is None
    row.send_back("a")
    assert row.due() == 0


def test_a_lost_attempt_is_due(states, task):
    row = Row(states, task.s(1))
    row.begin("a")
    row.send_back("a")
    assert row.due() == 0


def test_the_stage_after_the_finished_ones_is_due(states, task):
    row = Row(states, task.s(1), task.s(2), task.s(3))
    for number, tag in enumerate("abc"):
        assert row.due() == number
        row.finish(tag, "1")
    assert row.due() is None


@pytest.mark.parametrize("tag", ["a", "b"])
def test_a_row_that_has_failed_has_no_due_stage(states, task, tag):
    row = Row(states, task.s(1), task.s(2))
    if tag == "b":
        row.finish("a", "1")
    row.grid.end(tag, 0, int(Status.FAILED), attempt=row.begin(tag))
    assert row.due() is None


def test_a_first_publication_is_the_stored_message(states, task):
    row = Row(states, task.s(1), task.s(2))
    assert row.again() == row.stages[0]


def test_the_header_contains_the_number_of_the_publication(states, task):
    row = Row(states, task.s(1).set(countdown=60), task.s(2))
    for number in (1, 2):
        row.send_back("a")
        again = row.again()
        assert (binding_in(again).publication, again["eta_after"]) == (number, pytest.approx(60, abs=1))
        assert binding_in(again).next == "json"
    row.finish("a", "[7]")
    assert binding_in(row.again()).publication == 0
    row.send_back("b")
    assert binding_in(row.again()).publication == 1
    assert binding_in(row.again()).delivery(row.again()["publish"]["headers"]) == Delivery(1)


def test_a_later_stage_gets_the_kept_value(states, task):
    row = Row(states, task.s(1), task.s(2, k=3))
    row.finish("a", '{"v": [null]}')
    for _ in range(2):
        assert row.arguments() == [[{"v": [None]}, 2], {"k": 3}]
        row.send_back("b")


def test_a_later_stage_that_takes_no_value_needs_none(states, task):
    row = Row(states, task.s(1), task.si(2))
    row.finish("a")
    assert row.arguments()[0] == [2]


def test_a_retried_message_has_its_number_of_retries_and_no_eta(states, task):
    row = Row(states, task.s(1).set(countdown=60))
    assert row.again()["eta_after"]
    row.retry("a", 2)
    row.send_back("a")
    again = row.again()
    headers = again["publish"]["headers"]
    assert (headers["retries"], headers["eta"], "eta_after" in again) == (2, None, False)
    assert binding_in(again).delivery(headers) == Delivery(1, 0, 2) == row.grid.cell("a", 0).delivery
    assert content_of(states.app, again)[0] == [1]


def test_a_message_that_a_retry_changed_is_published_as_it_was_kept(states, task):
    row = Row(states, task.s(1))
    kept = {**row.stages[0], "body": "[[9], {}, {}]"}
    row.retry("a", 1, kept=changed.kept(kept))
    row.send_back("a")
    again = row.again()
    assert content_of(states.app, again)[0] == [9]
    assert binding_in(again).publication == 1


def test_a_message_that_a_replacement_changed_is_published_as_it_was_kept(states, task):
    row = Row(states, task.s(1))
    paused = Write.returned("a", 0, "replaced by other", Delivery(0, 1), attempt=row.begin("a"))
    paused.kept = changed.kept({**row.stages[0], "task": "other"})
    row.grid.store.write(row.grid.ref, paused)
    row.send_back("a")
    again = row.again()
    assert again["task"] == "other"
    assert (binding_in(again).publication, binding_in(again).replacements) == (1, 1)


def test_a_changed_message_that_was_too_large_is_not_published(states, task):
    row = Row(states, task.s(1))
    row.retry("a", 1, kept=changed.TOO_LARGE)
    row.send_back("a")
    text = "a retry or a replacement changed the message, which was too large to be kept"
    assert row.why_unpublishable() == (f"not published: {text}", "a")


def test_the_message_of_a_replacement_that_was_not_kept_is_not_published(states, task):
    row = Row(states, task.s(1))
    paused = Write.returned("a", 0, "replaced by other", Delivery(0, 1), attempt=row.begin("a"))
    row.grid.store.write(row.grid.ref, paused)
    row.send_back("a")
    text = "its task was replaced, and the message of the new one was not kept"
    assert row.why_unpublishable() == (f"not published: {text}", "a")


def test_a_stage_whose_value_was_not_kept_is_not_published(states, task):
    row = Row(states, task.s(1), task.s(2))
    row.finish("a", "")
    text = f"the value of the previous stage has more than {MAX_BYTES:,} bytes"
    assert row.why_unpublishable() == (f"not published: {text}", "b")


def test_a_stage_whose_value_may_not_be_decoded_is_not_published(states, task):
    states.app.conf.accept_content = ["json"]
    row = Row(states, task.s(1), task.s(2).set(serializer="pickle"))
    row.finish("a", "gARLAS4=")
    text, tag = row.why_unpublishable()
    assert text.startswith(
        "not published: the value of the previous stage cannot be put into its message: ContentDisallowed: "
    )
    assert tag == "b"


def test_the_entry_of_a_message_that_was_never_made_is_returned(states, task):
    row = Row(states, task.s(1), task.s(2))
    header = Binding(row.grid.ref, 0, "b", 1).to_header()
    row.stages[1] = {"task": "task", REJECTED: "not published: why", BINDING: header}
    row.finish("a", "1")
    row.retry("b", 1)
    row.send_back("b")
    assert row.again() == row.stages[1]
    assert message_of(states.app, row.stages[1], "1") == row.stages[1]


@pytest.mark.parametrize("kind", ["value", "none"])
def test_a_message_gets_a_value_only_if_there_is_one(states, task, kind):
    row = Row(states, task.s(1), task.s(2))
    value = '"v"' if kind == "value" else None
    assert (message_of(states.app, row.stages[1], value) == row.stages[1]) is (value is None)
