"""The messages that a worker's main process holds, and whether each is the only delivery of its cell there."""

import pytest
from celery.worker import state as worker_state
from kombu.asynchronous.timer import Timer

from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.requests import ALONE, HeldMessages
from celery_statemanager.records import JobKey, JobRef

JOB = JobRef(JobKey("job"), "0123456789abcdef")


class Request:
    """A message of a cell that a worker has received and not begun."""

    time_start = None
    acknowledged = False

    def __init__(self, row):
        binding = Binding(JOB, row, "a")
        self.id = binding.celery_task_id
        self.request_dict = {HEADER: binding.to_header()}
        self.delivery_info = {}

    @property
    def alone(self):
        return ALONE in self.delivery_info

    def run(self):
        self.time_start = 1.0
        worker_state.active_requests.add(self)
        return self


@pytest.fixture
def held():
    return HeldMessages()


@pytest.fixture
def receive(held):
    """Return a function that receives a message of a row."""

    def receive(row=0):
        request = Request(row)
        held.add(request)
        return request

    return receive


def test_first_message_of_a_cell_is_alone(receive):
    assert receive().alone


def test_message_is_alone_only_when_no_body_of_its_cell_runs(receive):
    running = receive().run()
    assert not receive().alone
    worker_state.active_requests.discard(running)
    assert receive().alone


def test_running_body_is_found_after_all_later_messages_are_gone(receive):
    held = [receive().run(), receive(), receive()]
    del held[1:]
    assert not receive().alone
    del held[:]
    assert receive().alone


def test_running_body_is_found_after_the_messages_before_and_after_it_are_gone(receive):
    first, second = receive(), receive()
    third = receive()
    second.run()
    del first, third
    assert not receive().alone


def test_abandoned_body_does_not_count_as_running(held, receive):
    running = receive().run()
    held.abandon(running.id)
    assert held.running() == []
    assert receive().alone


def test_neither_of_two_waiting_messages_is_alone(receive):
    waiting = receive()
    assert waiting.alone
    later = receive()
    assert not waiting.alone
    assert not later.alone


def test_a_message_does_not_wait_whose_timer_the_worker_has_cancelled(held, receive):
    """After a connection loss, although the request still exists: it and its timer refer to each other."""
    timer, waiting = Timer(), receive()
    waiting._eta_timer_entry = timer.call_after(3_600, waiting.run, (waiting,))
    assert [each for each, _ in held.waiting_cells()] == [waiting]
    assert len(held.waiting()) == 1
    timer.cancel(waiting._eta_timer_entry)
    assert held.waiting_cells() == []
    assert held.waiting() == set()


def test_repeated_ids_are_removed_with_their_messages(held, receive):
    for row in range(100):
        messages = [receive(row), receive(row)]
        del messages
    assert len(held._earlier) <= 1


def test_managers_hold_separate_messages(held, receive):
    running = receive().run()
    other = HeldMessages()
    assert held.running() == [Binding(JOB, 0, "a")]
    assert (other.running(), other.waiting_cells(), other.find(running.id)) == ([], [], None)
