"""What a worker knows of a message when it comes: whether a body of its cell runs there already."""

import pytest
from celery.worker import state as worker_state

from celery_statemanager.integration import requests
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.records import JobKey, JobRef

pytestmark = pytest.mark.usefixtures("holds_nothing")

JOB = JobRef(JobKey("job"), "0123456789abcdef")


class Request:
    """A message of a cell as a worker holds it, received just now."""

    time_start = None
    acknowledged = False

    def __init__(self, row=0):
        binding = Binding(JOB, row, "a")
        self.id = binding.celery_task_id
        self.request_dict = {HEADER: binding.to_header()}
        self.delivery_info = {}
        requests.remember(self)

    @property
    def alone(self):
        return requests.ALONE in self.delivery_info

    def run(self):
        self.time_start = 1.0
        worker_state.active_requests.add(self)
        return self


def test_the_first_message_of_a_cell_is_alone():
    assert Request().alone


def test_one_is_not_alone_while_a_body_of_its_cell_runs_and_is_when_it_is_gone():
    running = Request().run()
    assert not Request().alone
    worker_state.active_requests.discard(running)
    assert Request().alone


def test_a_running_body_is_known_when_all_that_came_after_it_are_gone():
    held = [Request().run(), Request(), Request()]
    del held[1:]
    assert not Request().alone
    del held[:]
    assert Request().alone


def test_a_running_body_is_known_when_the_one_before_and_the_one_after_it_are_gone():
    first, second = Request().run(), Request()
    third = Request()
    second.run()
    del first, third
    assert not Request().alone


def test_a_body_that_was_given_up_does_not_count():
    running = Request().run()
    requests.forget(running.id)
    assert Request().alone


def test_of_two_that_wait_neither_is_alone():
    waiting = Request()
    assert waiting.alone
    later = Request()
    assert not waiting.alone
    assert not later.alone


def test_what_is_remembered_of_repeated_ids_goes_with_their_messages():
    for row in range(100):
        held = [Request(row), Request(row)]
        del held
    assert len(requests._repeated) <= 1
