"""The effect of each named constructor of ``Write`` on the cell of a running task."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.models import FINISHED, Status
from celery_statemanager.records import Cell, Delivery, Write, new_job
from celery_statemanager.transitions import apply_write

JOB = new_job("job", 3, ("a", "b"))
PAYLOAD = '{"n":1}'
FIRST, RETRY, AGAIN = Delivery(0, 0, 0), Delivery(0, 0, 1), Delivery(1, 0, 0)
NEVER_BEGUN = Cell()
RUNNING = Cell(40, "page 4", PAYLOAD, version=2, event_id="e", attempt=1, open=True, owner="w", kept="m")
DENIED = Cell(-42, "denied", PAYLOAD, version=2, event_id="e", attempt=1, open=True, owner="w", kept="m")
RETURNED = Cell(1, "retry", PAYLOAD, version=3, event_id="f", attempt=1, delivery=RETRY, kept="m")


def taken(cell: Cell, write: Write) -> Cell:
    return apply_write(JOB, cell, write, 7)


def test_each_write_has_an_event_id_of_its_own():
    ids = {Write.state("a", 0, 5).event_id, Write.progress("a", 0, 5, "{}").event_id, Write("a", 0, 5).event_id}
    assert len(ids) == 3
    assert Write.state("a", 0, 5, event_id="").event_id == ""


def test_a_state_replaces_the_payload_and_leaves_the_attempt_open():
    cell = taken(RUNNING, Write.state("a", 0, 50, "page 5", '{"n":2}'))
    assert (cell.status, cell.message, cell.payload, cell.open) == (50, "page 5", '{"n":2}', True)
    assert taken(RUNNING, Write.state("a", 0, 50)).payload is None


def test_progress_keeps_the_rest_of_the_payload():
    cell = taken(RUNNING, Write.progress("a", 0, 50, '{"done":1,"total":2}', "half"))
    assert (cell.status, cell.message, cell.open) == (50, "half", True)
    assert cell.payload == '{"n":1,"progress":{"done":1,"total":2}}'


def test_an_ending_closes_the_attempt_and_keeps_an_application_status():
    done = taken(RUNNING, Write.ending("a", 0, FINISHED, progress='{"done":2,"total":2}'))
    assert (done.status, done.message, done.final, done.kept) == (FINISHED, "page 4", True, None)
    assert done.payload == '{"n":1,"progress":{"done":2,"total":2}}'
    denied = taken(DENIED, Write.ending("a", 0, Status.FAILED, "ValueError: late"))
    assert (denied.status, denied.message, denied.final) == (-42, "denied", True)
    replaced = taken(DENIED, Write.ending("a", 0, -7, "cancelled", keep_app_status=False))
    assert (replaced.status, replaced.message) == (-7, "cancelled")


def test_an_ending_requires_its_attempt_to_be_the_current_one():
    assert taken(RUNNING, Write.ending("a", 0, FINISHED, attempt=1, if_owner=("w", FIRST))).final
    for write in (
        Write.ending("a", 0, FINISHED, attempt=2),
        Write.ending("a", 0, FINISHED, if_owner=("w", RETRY)),
        Write.ending("a", 0, FINISHED, if_owner=("other", FIRST)),
    ):
        with pytest.raises(AttemptSuperseded):
            taken(RUNNING, write)
    with pytest.raises(AttemptSuperseded):
        taken(RETURNED, Write.ending("a", 0, FINISHED))


@pytest.mark.parametrize("cell", [RUNNING, DENIED], ids=["running", "denied"])
def test_a_returned_attempt_is_closed_and_waits_for_its_next_delivery(cell):
    """This includes cells with a negative status of the application: the next attempt decides."""
    waiting = taken(cell, Write.returned("a", 0, "retry 1", RETRY, counts_as_loss=True))
    assert (waiting.status, waiting.message, waiting.open, waiting.final) == (1, "retry 1", False, False)
    assert (waiting.delivery, waiting.losses, waiting.kept, waiting.payload) == (RETRY, 1, "m", PAYLOAD)
    assert taken(cell, Write.returned("a", 0, "sent again")).delivery == FIRST


def test_a_message_that_is_sent_back_is_due_once_more():
    waiting = taken(NEVER_BEGUN, Write.sent_back("a", 0, "never received", attempt=0))
    assert (waiting.status, waiting.message, waiting.waiting, waiting.delivery) == (0, "never received", True, AGAIN)
    retried = taken(RETURNED, Write.sent_back("a", 0, "never received", attempt=1))
    assert (retried.status, retried.open, retried.kept, retried.payload) == (1, False, "m", PAYLOAD)
    assert retried.delivery == Delivery(1, 0, 1)
    lost = taken(RUNNING, Write.sent_back("a", 0, "lost", attempt=1, is_open=True, counts_as_loss=True))
    assert (lost.status, lost.open, lost.losses, lost.kept, lost.delivery) == (1, False, 1, "m", AGAIN)
    assert lost.awaits_end
    for cell, write in (
        (RUNNING, Write.sent_back("a", 0, "never received", attempt=1)),
        (RETURNED, Write.sent_back("a", 0, "never received", attempt=0)),
        (RETURNED, Write.sent_back("a", 0, "lost", attempt=1, is_open=True)),
    ):
        with pytest.raises(AttemptSuperseded):
            taken(cell, write)


def test_a_lost_attempt_is_ended_and_counted():
    lost = taken(RUNNING, Write.lost("a", 0, "lost with its worker w", attempt=1, event_id="lost"))
    assert (lost.status, lost.final, lost.losses, lost.event_id) == (Status.LOST, True, 1, "lost")
    with pytest.raises(AttemptSuperseded):
        taken(RUNNING, Write.lost("a", 0, "lost", attempt=2))


@pytest.mark.parametrize(
    "write",
    [Write.lost("a", 0, "lost before it began"), Write.never_begun("a", 0, Status.EXPIRED, "expired")],
    ids=["lost", "never_begun"],
)
def test_a_message_that_never_began_ends_only_a_cell_without_an_open_attempt(write):
    for cell in (NEVER_BEGUN, RETURNED):
        ended = taken(cell, write)
        assert (ended.status, ended.final, ended.payload) == (write.status, True, cell.payload)
    with pytest.raises(AttemptSuperseded):
        taken(RUNNING, write)
