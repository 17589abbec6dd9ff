"""Publishing claimed messages while the broker or the store fails."""

import logging
import os
from contextlib import suppress
from dataclasses import replace

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_statemanager import ResultUnavailable, StateManager, Status, StoreUnavailable, completion, leases
from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.integration import requests, results
from celery_statemanager.integration.binding import HEADER, RESULT, Binding
from celery_statemanager.integration.outbox import changed, names, publisher
from celery_statemanager.integration.outbox.envelope import to_json, with_headers
from celery_statemanager.integration.outbox.making import binding_in
from celery_statemanager.integration.outbox.publisher import FEWEST, MOST, publish_due, release_claims
from celery_statemanager.integration.worker import sweeping
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.leases import Received, Report
from celery_statemanager.reclaim import Reclaimer
from celery_statemanager.records import Begin, Delivery, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import FINISHED, PATIENCE

GONE = OperationalError("gone")


@pytest.fixture
def states(clock):
    app = Celery("publisher", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = FaultyStore(MemoryStore(clock))
    yield states
    app.close()


@pytest.fixture
def task(states):
    @states.app.task(name="task", shared=False)
    def task(*_): ...

    return task


@pytest.fixture
def broker(monkeypatch):
    """The rows that were published, and the errors that the broker raises instead, by row."""

    class Broker:
        def __init__(self):
            self.rows = []
            self.ids = []
            self.messages = []
            self.errors = {}

        def publish(self, app, message, producer):
            row = int(message["publish"]["headers"]["id"].split(".")[1])
            if row in self.errors:
                raise self.errors[row]
            self.rows.append(row)
            self.messages.append(message)
            self.ids.append(message["publish"]["headers"]["id"].split(".", 1)[1])

    broker = Broker()
    monkeypatch.setattr(publisher, "publish", broker.publish)
    return broker


def submitted(states, task, rows, max_in_flight=None, job_id=None):
    job = states.submit([task.s() for _ in range(rows)], max_in_flight=max_in_flight, job_id=job_id)
    return Grid(states.store, job.manager.ref)


def end(states, grid, row):
    """End a row as a worker's process does."""
    attempt = grid.begin("default", row, owner="w").cell.attempt
    publisher.write(states, grid.ref, Write.ending("default", row, FINISHED, attempt=attempt))


def claims(states, grid):
    return {name: str(claim.rows) for name, claim in states.store.get_outbox(grid.ref).claims.items()}


def returned(states, grid):
    """Return the rows that are due again: those that have begun, and the others."""
    rows = states.store.get_outbox(grid.ref).returned
    return str(rows.begun), str(rows.waiting)


def test_what_an_error_left_is_published_by_the_next_publisher(states, task, broker):
    broker.errors = {2: GONE}
    grid = submitted(states, task, 5)
    assert broker.rows == [0, 1]
    assert (returned(states, grid), claims(states, grid)) == (("", "2-4"), {})
    broker.errors.clear()
    assert publish_due(states, grid.ref) == 3
    assert broker.rows == [0, 1, 2, 3, 4]
    assert (returned(states, grid), claims(states, grid)) == (("", ""), {})


def test_what_a_dead_publisher_had_claimed_is_published_unless_it_has_begun(states, task, broker):
    dead, grid = killed(states, task, broker, 5, at=3)
    for row in (0, 1):
        grid.begin("default", row)
    grid.end("default", 1)
    assert publish_due(states, grid.ref, dead=[dead]) == 3
    assert broker.rows == [0, 1, 2, 2, 3, 4], "a row that has begun is not published again"
    assert claims(states, grid) == {}


def killed(states, task, broker, rows, at):
    """Submit a job in a process that is killed before it publishes a row. Return the name of the publisher, and the job."""
    broker.errors = {at: SystemExit()}
    with pytest.raises(SystemExit):
        submitted(states, task, rows, job_id="left")
    broker.errors = {}
    grid = Grid(states.store, states.job("left").manager.ref)
    (name,) = claims(states, grid)
    return name, grid


def test_the_ends_of_rows_publish_the_next_ones(states, task, broker):
    grid = submitted(states, task, 5, max_in_flight=2)
    assert broker.rows == [0, 1]
    end(states, grid, 1)
    end(states, grid, 0)
    assert broker.rows == [0, 1, 2, 3]


def test_rows_that_one_thread_could_not_publish_twice_are_all_published_by_a_sweep(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    broker.errors = dict.fromkeys(range(2, 6), GONE)
    end(states, grid, 0)
    end(states, grid, 1)
    assert returned(states, grid) == ("", "2-3")
    broker.errors.clear()
    sweep(states)
    assert broker.rows == [0, 1, 2, 3]
    for row in range(2, 6):
        end(states, grid, row)
    assert broker.rows == [0, 1, 2, 3, 4, 5]
    assert states.job(grid.ref.key.job_id).summary().finished == 6


def test_rows_claimed_by_a_write_whose_response_was_lost_are_published_by_its_repetition(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    for row in (0, 1):
        grid.begin("default", row)
    states.store.lose_response("write", applied=True)
    ending = Write.ending("default", 0, FINISHED, attempt=1)
    with pytest.raises(StoreUnavailable):
        publisher.write(states, grid.ref, ending)
    publisher.write(states, grid.ref, Write.ending("default", 1, FINISHED, attempt=1))
    assert broker.rows == [0, 1, 3]
    publisher.write(states, grid.ref, ending)
    assert broker.rows == [0, 1, 3, 2]


def test_rows_that_neither_the_broker_nor_the_store_takes_are_left_when_the_store_is_back(states, task, broker):
    grid = submitted(states, task, 6, max_in_flight=2)
    broker.errors = {2: GONE}
    states.store.lose_response("claim", applied=False)
    end(states, grid, 0)
    end(states, grid, 1)
    assert 2 not in broker.rows
    states.backlog.flush(PATIENCE)
    broker.errors.clear()
    sweep(states)
    assert sorted(broker.rows) == [0, 1, 2, 3]


def test_a_message_that_the_broker_refuses_for_good_ends_its_row_and_makes_room(states, task, broker):
    grid = submitted(states, task, 4, max_in_flight=1)
    broker.errors = {1: ValueError("a message of 300 KiB is too large")}
    end(states, grid, 0)
    state = grid.state("default", 1)
    assert (state.status, state.message) == (
        Status.REJECTED,
        "not published: ValueError: a message of 300 KiB is too large",
    )
    sweep(states)
    end(states, grid, 2)
    assert broker.rows == [0, 2, 3]


def test_all_messages_of_a_job_may_be_refused(states, task, broker):
    broker.errors = dict.fromkeys(range(250), ValueError("no"))
    grid = submitted(states, task, 250)
    assert states.job(grid.ref.key.job_id).summary().failed == 250
    assert "settled" in grid.decided
    assert not sweep(states).published


def test_a_task_class_that_sends_nothing_ends_its_rows(states, broker):
    class Silent(states.app.Task):
        def apply_async(self, *args, **options):
            return self.AsyncResult("another")

    @states.app.task(name="silent", base=Silent, shared=False)
    def silent(): ...

    grid = submitted(states, silent, 2)
    assert broker.rows == []
    state = grid.state("default", 0)
    text = "not published: apply_async of Silent sent no message for task silent"
    assert (state.status, state.message) == (Status.REJECTED, text)
    assert "settled" in grid.decided


def test_the_other_jobs_are_published_if_the_messages_of_one_are_missing(states, task, broker, caplog):
    broker.errors = dict.fromkeys(range(2), GONE)
    broken, whole = submitted(states, task, 2, job_id="broken"), submitted(states, task, 2, job_id="whole")
    broker.errors.clear()
    states.store.inner._blocks.pop(broken.ref.incarnation)
    states.blocks.__init__()
    with caplog.at_level(logging.WARNING, "celery_statemanager"):
        assert sweep(states).published == 2
    assert "the message of row 0 of job 'broken' is not in the store" in caplog.text
    assert claims(states, whole) == {}
    broken.cancel()
    assert "settled" in broken.decided


def test_a_deleted_job_is_not_published(states, task, broker, caplog):
    grid = submitted(states, task, 3, max_in_flight=1)
    grid.delete()
    with caplog.at_level(logging.INFO, "celery_statemanager"):
        assert publish_due(states, grid.ref) == 0
    assert [each.levelname for each in caplog.records if "not published" in each.message] == ["INFO"]


def test_a_publisher_without_time_publishes_only_what_dead_ones_had_claimed(states, task, broker):
    dead, grid = killed(states, task, broker, 300, at=0)
    assert publish_due(states, grid.ref, dead=[dead], seconds=-1.0) == FEWEST
    assert broker.rows == [*range(FEWEST)]
    assert claims(states, grid) == {}
    assert publish_due(states, grid.ref) == 300 - FEWEST


def chains(states, task, rows=3):
    """Submit a job with rows of two stages."""
    members = [states.tag(task.s(row), "a") | states.tag(task.s(), "b") for row in range(rows)]
    return Grid(states.store, states.submit(members).manager.ref)


def finish_first(states, grid, row, value='"v"'):
    """Finish the first stage of a row as its task does."""
    last = Write.ending("a", row, FINISHED, attempt=grid.begin("a", row, owner="w").cell.attempt)
    last.next_is_due, last.value = True, value
    publisher.write(states, grid.ref, last, value=value)


def test_the_end_of_a_stage_publishes_the_next_one_with_its_value(states, task, broker):
    grid = chains(states, task)
    finish_first(states, grid, 1)
    assert broker.ids == ["0.0", "1.0", "2.0", "1.1"]
    assert broker.messages[-1]["body"].startswith('[["v"]')
    assert (returned(states, grid), [*claims(states, grid).values()]) == (("", ""), ["1"])


def test_a_next_stage_that_the_broker_did_not_take_is_published_by_a_sweep(states, task, broker):
    grid = chains(states, task)
    broker.errors = {1: GONE}
    finish_first(states, grid, 1)
    assert (returned(states, grid), claims(states, grid)) == (("1", ""), {})
    broker.errors = {}
    assert sweep(states).published == 1
    assert broker.ids[3:] == ["1.1"]
    assert broker.messages[-1]["body"].startswith('[["v"]')


def test_a_next_stage_is_published_in_a_paused_job(states, task, broker):
    grid = chains(states, task)
    assert states.job(grid.ref.key.job_id).pause("deploying")
    broker.errors = {1: GONE}
    finish_first(states, grid, 0)
    finish_first(states, grid, 1)
    broker.errors = {}
    assert sweep(states).published == 1
    assert broker.ids[3:] == ["0.1", "1.1"]


def test_a_next_stage_that_the_broker_refuses_for_good_ends_its_row(states, task, broker):
    grid = chains(states, task)
    broker.errors = {1: ValueError("no")}
    finish_first(states, grid, 1)
    assert (grid.cell("b", 1).status, grid.cell("b", 1).message) == (Status.REJECTED, "not published: ValueError: no")


def test_a_next_stage_that_cannot_take_the_value_ends_its_row(states, task, broker):
    states.app.conf.accept_content = ["json"]
    member = states.tag(task.s(), "a") | states.tag(task.s().set(serializer="pickle"), "b")
    grid = Grid(states.store, states.submit([member, member]).manager.ref)
    finish_first(states, grid, 0, "gARLAS4=")
    text = "not published: the value of the previous stage cannot be put into its message: ContentDisallowed: "
    assert (grid.cell("b", 0).status, grid.cell("b", 0).message.startswith(text)) == (Status.REJECTED, True)


def test_a_row_whose_message_is_not_kept_ends_and_the_others_are_published(states, task, broker):
    grid = chains(states, task)
    broker.errors = dict.fromkeys(range(3), GONE)
    for row, value in ((0, '"v"'), (1, ""), (2, '"v"')):
        finish_first(states, grid, row, value)
    broker.errors = {}
    assert sweep(states).published == 2
    assert broker.ids[3:] == ["0.1", "2.1"]
    text = "not published: the value of the previous stage has more than 524,288 bytes"
    assert (grid.cell("b", 1).status, grid.cell("b", 1).message) == (Status.REJECTED, text)


def test_a_lost_row_of_a_cancelled_job_ends_cancelled(states, task, broker):
    grid = chains(states, task)
    finish_first(states, grid, 1)
    grid.begin("b", 1, owner="w")
    grid.store.write(grid.ref, Write.sent_back("b", 1, "sent again", attempt=1, is_open=True))
    states.job(grid.ref.key.job_id).cancel("enough")
    assert "settled" not in grid.decided
    assert sweep(states).published == 0
    assert (broker.ids[4:], grid.state("b", 1).status, grid.state("b", 1).message) == ([], Status.CANCELLED, "enough")
    assert "settled" in grid.decided
    assert returned(states, grid) == ("", "")


def test_the_repetition_of_an_end_whose_response_was_lost_publishes_the_next_stage(states, task, broker):
    grid = chains(states, task)
    last = Write.ending("a", 1, FINISHED, attempt=grid.begin("a", 1, owner="w").cell.attempt)
    last.next_is_due = True
    states.store.lose_response("write", applied=True)
    with pytest.raises(StoreUnavailable):
        publisher.write(states, grid.ref, last, value="1")
    assert broker.ids[3:] == []
    publisher.write(states, grid.ref, last, value="1")
    assert broker.ids[3:] == ["1.1"]


def test_a_row_that_never_began_waits_if_its_message_cannot_be_published_again(states, task, broker):
    grid = submitted(states, task, 3)
    for row in range(3):
        grid.store.write(grid.ref, Write.sent_back("default", row, "sent again", attempt=0))
    grid.begin("default", 1, delivery=Delivery(1))
    broker.errors = {0: GONE}
    assert publish_due(states, grid.ref) == 0
    assert returned(states, grid) == ("1", "0,2")


def test_a_process_that_ends_removes_the_claims_that_it_has_published(states, task, broker):
    grid, other = (submitted(states, task, 5, max_in_flight=2) for _ in range(2))
    for each in (grid, other):
        end(states, each, 0)
    assert ([*claims(states, grid).values()], [*claims(states, other).values()]) == (["2"], ["2"])
    states.store.lose_response("claim", applied=False)
    release_claims()
    assert [len(claims(states, each)) for each in (grid, other)] in ([0, 1], [1, 0]), "an error of one job is ignored"
    assert broker.rows == [0, 1, 0, 1, 2, 2]
    assert publish_due(states, grid.ref) == 0


def test_a_process_that_ends_keeps_claims_that_others_must_publish(states, task, broker):
    grid = submitted(states, task, 5, max_in_flight=2)
    grid.begin("default", 0, owner="w")
    states.store.lose_response("write", applied=True)
    with pytest.raises(StoreUnavailable):
        publisher.write(states, grid.ref, Write.ending("default", 0, FINISHED, attempt=1))
    lost = claims(states, grid)
    assert [*lost.values()] == ["2"]
    end(states, grid, 1)
    release_claims()
    assert claims(states, grid) == lost
    assert broker.rows == [0, 1, 3]


@pytest.mark.parametrize("released", [True, False])
def test_a_next_stage_that_a_killed_beat_had_claimed_is_published(states, task, broker, clock, released):
    """It has no worker record that would show that it has died."""
    grid = chains(states, task)
    if released:
        finish_first(states, grid, 0)
        release_claims()
    else:
        broker.errors = {0: SystemExit()}
        with pytest.raises(SystemExit):
            finish_first(states, grid, 0)
        broker.errors = {}
    assert sweep(states).published == 0
    clock.advance(3_600)
    assert sweep(states).published == (0 if released else 1)
    assert broker.ids[3:] == ["0.1"]


@pytest.mark.parametrize("how", ["end of a row", "sweep"])
def test_a_process_that_ends_keeps_claims_that_another_thread_is_publishing(states, task, broker, how):
    """Each thread uses the names of this process again."""
    grid = submitted(states, task, 6, max_in_flight=2)
    end(states, grid, 0)
    states.job(grid.ref.key.job_id).set_max_in_flight(3)
    grid.store.write(grid.ref, Write.sent_back("default", 1, "sent again", attempt=0))
    seen = []

    def publish(*_):
        if not seen:
            release_claims()
            seen.append([*claims(states, grid).values()])

    publisher.publish = publish
    if how == "sweep":
        publish_due(states, grid.ref)
    else:
        end(states, grid, 2)
    assert len(seen[0]) == 1
    release_claims()
    assert claims(states, grid) == {}


def test_claims_of_a_deleted_job_are_forgotten(states, task, broker):
    grid = submitted(states, task, 5, max_in_flight=2)
    end(states, grid, 0)
    grid.delete()
    release_claims()
    assert publisher._claims == {}


def test_claims_of_the_last_jobs_are_remembered(states, task, broker, monkeypatch):
    monkeypatch.setattr(publisher, "MOST_JOBS", 2)
    grids = [submitted(states, task, 3, max_in_flight=1) for _ in range(3)]
    for grid in grids:
        end(states, grid, 0)
    release_claims()
    assert [[*claims(states, grid).values()] for grid in grids] == [["1"], [], []]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_child_does_not_remove_claims_of_its_parent(states, task, broker):
    grid = submitted(states, task, 5, max_in_flight=2)
    end(states, grid, 0)
    before = claims(states, grid)
    names.os.getpid, own = lambda: 0, os.getpid
    try:
        release_claims()
    finally:
        names.os.getpid = own
    assert claims(states, grid) == before


@pytest.mark.parametrize(
    ("limit", "seconds", "expected"),
    [(100, 0.25, 100), (100, 0.1, 250), (100, 0.0, MOST), (1_000, 10.0, FEWEST), (400, 0.5, 200)],
)
def test_the_number_of_rows_that_are_claimed_at_once_follows_the_speed(limit, seconds, expected):
    assert publisher._next_limit(limit, seconds) == expected


def claimed_next(states, grid, row, **report):
    """Finish a stage in a child of a worker that has claimed the row for the next stage, and has not published that."""
    states.store.put_worker("w", Report(processes=[7], **report).to_json(), 30.0)
    last = Write.ending("a", row, FINISHED, attempt=grid.begin("a", row, owner="w").cell.attempt)
    last.next_is_due, last.publisher, last.value = True, "w/7.0", '"v"'
    states.store.write(grid.ref, last)


@pytest.fixture
def sweep_later(states, clock, monkeypatch):
    """Sweep some times in a live worker, this process."""
    worker_id = f"host:{os.getpid()}:x"
    monkeypatch.setenv(requests.WORKER_ID, worker_id)

    def sweep_later():
        for _ in range(4):
            clock.advance(20)
            leases.renew(states.store, worker_id, Report(processes=[os.getpid()]), 30.0)
            sweep(states)

    return sweep_later


@pytest.mark.parametrize("call", ["claim", "get_outbox"])
def test_a_claim_of_a_dead_worker_is_published_although_the_store_fails_in_the_first_sweep(
    states, task, broker, clock, sweep_later, call
):
    """The record of the worker shows that it has died: it is kept until its claims are taken over."""
    grid = chains(states, task)
    claimed_next(states, grid, 0)
    clock.advance(100)
    states.store.lose_response(call, applied=False)
    with suppress(StoreUnavailable):
        sweep(states)
    sweep_later()
    assert broker.ids[3:] == ["0.1"]


def test_a_claim_of_a_dead_worker_is_published_after_another_app_has_returned_what_the_worker_received(
    states, task, broker, clock, sweep_later
):
    class Other(sweeping._AppActions):
        def _is_ours(self, ref, task):
            return False

    grid = chains(states, task)
    claimed_next(states, grid, 0, received=[Received(grid.ref, "a", 2)])
    clock.advance(60)
    Sweep(states.store, Other(states), lease=30.0, max_lost=3).run()
    sweep_later()
    assert sorted(broker.ids[3:]) == ["0.1", "2.0"]


def test_claims_of_a_live_worker_of_another_release_are_left(states, task, broker, clock):
    grid = chains(states, task)
    claimed_next(states, grid, 0)
    clock.advance(5)
    states.store.put_worker("w", '{"of": "another release"}', 30.0)
    sweep(states)
    assert broker.ids[3:] == []


def test_rows_that_a_pause_held_back_are_published_although_next_stages_were_claimed(
    states, task, broker, sweep_later, monkeypatch
):
    """The claims of ends stay until their publishers claim again."""
    publish = broker.publish

    def pausing(app, message, producer):
        publish(app, message, producer)
        completion.pause(states.store, binding_in(message).ref, "deploying")

    monkeypatch.setattr(publisher, "publish", pausing)
    grid = chains(states, task, rows=FEWEST + 20)
    monkeypatch.setattr(publisher, "publish", publish)
    assert len(broker.rows) == FEWEST
    finish_first(states, grid, 0)
    completion.resume(states.store, grid.ref)
    sweep_later()
    assert len(broker.rows) == FEWEST + 20 + 1


def test_a_stored_success_whose_write_got_no_response_publishes_the_next_stage(
    states, task, broker, clock, sweep_later, monkeypatch
):
    monkeypatch.setattr(results, "has_succeeded", lambda *_: True)
    monkeypatch.setattr(results, "_pass_on", lambda tracker, write, binding, task: results.pass_on(write, binding, "v"))
    grid = chains(states, task)
    states.store.put_worker("w", Report().to_json(), 30.0)
    grid.begin("a", 0, owner="w")
    clock.advance(100)
    states.store.lose_response("write", applied=True)
    with pytest.raises(StoreUnavailable):
        sweep(states)
    states.backlog.flush(PATIENCE)
    sweep_later()
    assert grid.cell("a", 0).status == FINISHED
    assert broker.ids[3:] == ["0.1"]


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_stored_success_has_its_stored_result(states, task, monkeypatch, is_readable):
    def get_result(task_id):
        if not is_readable:
            raise OSError("gone")
        return {"task": task_id}

    monkeypatch.setattr(results, "has_succeeded", lambda *_: True)
    monkeypatch.setattr(states.app.backend, "get_result", get_result)
    job = states.submit([task.s()], results=True)
    binding = Binding(job.manager.ref, 0, job.tags[0], next=RESULT)
    job.manager.store.begin(job.manager.ref, Begin(tag=job.tags[0], task_index=0, owner="w"))
    assert results.finish_if_succeeded(states, binding, None)
    if is_readable:
        assert job.get(0) == [{"task": binding.celery_task_id}]
    else:
        with pytest.raises(ResultUnavailable, match=r"task 0 .*it cannot be read from .*: OSError: gone"):
            job.get(0)


class GreenletTimeout(BaseException):
    """As ``gevent.Timeout``, by which Celery ends a task in a process that goes on."""


def test_a_next_stage_is_published_although_the_timeout_of_a_greenlet_interrupts_its_publication(
    states, task, broker, sweep_later
):
    grid = chains(states, task)
    broker.errors = {0: GreenletTimeout()}
    with pytest.raises(GreenletTimeout):
        finish_first(states, grid, 0)
    broker.errors = {}
    sweep_later()
    assert broker.ids[3:] == ["0.1"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_next_stage_is_published_although_the_timeout_of_a_greenlet_interrupts_its_claim(states, task, broker, fails):
    grid = chains(states, task)
    write = states.store.write

    def interrupted(*args):
        write(*args)
        raise GreenletTimeout

    last = Write.ending("a", 0, FINISHED, attempt=grid.begin("a", 0, owner="w").cell.attempt)
    last.next_is_due, last.value = True, '"v"'
    if fails:
        states.store.lose_response("claim", applied=False)
    with pytest.raises(GreenletTimeout):
        publisher.write(states, grid.ref, last, lambda: interrupted(grid.ref, last), value='"v"')
    states.backlog.flush(PATIENCE)
    assert (broker.ids[3:], claims(states, grid)) == (["0.1"], {})


def test_a_claim_is_removed_although_a_later_write_was_refused(states, task, broker):
    grid = chains(states, task)
    finish_first(states, grid, 0)
    with pytest.raises(AttemptSuperseded):
        publisher.write(states, grid.ref, Write.ending("a", 1, FINISHED, attempt=9))
    release_claims()
    assert claims(states, grid) == {}


def test_a_claim_is_removed_whose_write_was_repeated(states, task, broker):
    grid = chains(states, task)
    last = Write.ending("a", 1, FINISHED, attempt=grid.begin("a", 1, owner="w").cell.attempt)
    last.next_is_due = True
    states.store.lose_response("write", applied=True)
    with pytest.raises(StoreUnavailable):
        publisher.write(states, grid.ref, last, value="1")
    publisher.write(states, grid.ref, last, value="1")
    release_claims()
    assert claims(states, grid) == {}


def test_what_an_end_claims_for_another_app_goes_back(states, task, broker):
    """The sweep of one app may end an attempt of another one."""
    grid = chains(states, task)
    last = Write.ending("a", 0, FINISHED, attempt=grid.begin("a", 0, owner="w").cell.attempt)
    last.next_is_due, last.value = True, '"v"'
    publisher.write(states, grid.ref, last, value='"v"', may_send=lambda name: False)
    assert (broker.ids[3:], returned(states, grid), claims(states, grid)) == ([], ("0", ""), {})


def test_the_last_task_of_a_replacement_that_a_dead_worker_had_received_is_published(states, task, broker, clock):
    """Only its worker has the message, because a part of the replacement has sent it."""
    grid = submitted(states, task, 1)
    replaced = Delivery(0, 1)
    attempt = grid.begin("default", 0, owner="w").cell.attempt
    grid.store.write(grid.ref, Write.returned("default", 0, "replaced", replaced, attempt=attempt))
    binding = replace(binding_in(broker.messages[0]), replacements=1)
    message = to_json(with_headers({**broker.messages[0], "task": "last"}, **{HEADER: binding.to_header()}))
    received = [Received(grid.ref, "default", 0, replaced, message)]
    states.store.put_worker("w", Report(received=received).to_json(), 0)
    clock.advance(1)
    assert sweep(states).published == 1
    assert broker.messages[1]["task"] == "last"
    assert binding_in(broker.messages[1]) == replace(binding, publication=1)


def test_a_retry_that_a_dead_worker_had_received_keeps_its_eta(states, task, broker, clock):
    grid = submitted(states, task, 1)
    delivery, eta = Delivery(0, 0, 1), "2040-01-01T00:00:00+00:00"
    attempt = grid.begin("default", 0, owner="w").cell.attempt
    grid.store.write(grid.ref, Write.returned("default", 0, "retry", delivery, attempt=attempt))
    received = [Received(grid.ref, "default", 0, delivery, changed.eta_to_json("task", eta))]
    states.store.put_worker("w", Report(received=received).to_json(), 0)
    clock.advance(1)
    assert sweep(states).published == 1
    headers = broker.messages[1]["publish"]["headers"]
    assert (headers["eta"], headers["retries"], headers["task"]) == (eta, 1, "task")


def test_two_sweeps_return_a_received_row_once(states, task, broker, monkeypatch):
    """Otherwise a plain task whose message was published in between would run twice."""
    grid = submitted(states, task, 1)
    row, get_cell = Received(grid.ref, "default", 0), states.store.get_cell
    first, second = (Reclaimer(states.store, None, 30_000_000, max_lost=3) for _ in range(2))

    def get_cell_late(*place):
        cell = get_cell(*place)
        monkeypatch.undo()
        second.return_received(row, "it died")
        return cell

    monkeypatch.setattr(states.store, "get_cell", get_cell_late, raising=False)
    first.return_received(row, "it died")
    assert grid.cell("default", 0).delivery == Delivery(1)


def test_a_claim_of_a_child_that_was_killed_before_its_worker_stopped_is_published(
    states, task, broker, clock, sweep_later
):
    grid = chains(states, task)
    claimed_next(states, grid, 0)
    states.store.drop_worker("w")
    sweep_later()
    assert broker.ids[3:] == ["0.1"]


def test_a_claim_is_published_whose_publisher_was_killed_after_the_broker_had_not_answered_for_a_renewal(
    states, task, broker, clock, sweep_later
):
    grid = chains(states, task)
    claimed_next(states, grid, 0)
    clock.advance(25)
    running = [leases.cell_name(grid.ref, "a", 0)]  # its task ends when its signal handler has published
    states.store.put_worker("w", Report(running, processes=[7]).to_json(), 30.0)
    sweep_later()
    assert broker.ids[3:] == ["0.1"]
