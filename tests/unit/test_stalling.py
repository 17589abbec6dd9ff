"""The options about stalled tasks, and what a sweep marks (rule R23)."""

import math
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_statemanager import ConfigurationError, StatefulTask, StateManager, TaskStalled
from celery_statemanager.integration import stalling
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.stalling import Limit
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.liveness import ListedCells
from celery_statemanager.records import Delivery, JobKey, JobRef, OpenAttempt, WorkerRecord
from celery_statemanager.stalls import stalled_since
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FakeClock


def work():
    pass


BAD = [
    ({"stall_after": "60"}, TypeError, "stall_after must be a number of seconds above 0, not '60'"),
    ({"stall_after": True}, TypeError, "stall_after must be a number of seconds above 0, not True"),
    ({"stall_after": 0}, ValueError, "stall_after must be a number of seconds above 0, not 0"),
    ({"stall_after": -1}, ValueError, "above 0, not -1"),
    ({"stall_after": math.nan}, ValueError, "above 0, not nan"),
    ({"stall_after": math.inf}, ValueError, "above 0, not inf"),
    ({"stall_after": 1.9}, ValueError, "at least 2 s, twice statemanager_progress_interval, not 1.9 s"),
    ({"on_stall": "kill"}, ValueError, 'on_stall must be "report" or "stop", not \'kill\''),
    ({"stall_after": 60, "on_stall": ""}, ValueError, 'on_stall must be "report" or "stop", not \'\''),
]


@pytest.fixture
def app():
    app = Celery("stalls", broker="memory://")
    app.conf.statemanager_store_url = "memory://"
    StateManager(app)
    return app


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_of_a_job_are_rejected_before_anything_is_written(app, options, error, message):
    states = StateManager(app)
    with pytest.raises(error) as raised:
        states.submit([app.task(work, name="t").s()], **options)
    assert message in str(raised.value)
    assert states.store.list_jobs().jobs == []


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_of_a_task_are_rejected_by_submit(app, options, error, message):
    task = app.task(work, name="t", **options)
    with pytest.raises(ConfigurationError) as raised:
        StateManager(app).submit([task.s()])
    assert str(raised.value).startswith("task 't': ")
    assert message in str(raised.value)
    assert stalling.limit_of(task, None, 1.0) is None


def test_a_class_with_bad_options_cannot_be_declared():
    with pytest.raises(ConfigurationError, match=r"task '.*Bad': stall_after must be a number"):
        type("Bad", (StatefulTask,), {"stall_after": "60"})


@pytest.mark.parametrize(
    ("own", "of_job", "limit"),
    [
        ({}, None, None),
        ({}, (None, "stop"), None),
        ({"stall_after": 60}, None, Limit(60, False)),
        ({"stall_after": 60, "on_stall": "stop"}, None, Limit(60, True)),
        ({"stall_after": 60}, (120, None), Limit(120, False)),
        ({"stall_after": 60, "on_stall": "stop"}, (120, None), Limit(120, True)),
        ({"stall_after": 60, "on_stall": "stop"}, (None, "report"), Limit(60, False)),
        ({"on_stall": "stop"}, (120, None), Limit(120, True)),
        ({"stall_after": "bad"}, (120, "report"), Limit(120, False)),
    ],
)
def test_the_options_of_the_job_win(own, of_job, limit):
    assert stalling.limit_of(SimpleNamespace(**own), of_job, 1.0) == limit


def test_messages_carry_the_options_of_their_job():
    binding = Binding(JobRef(JobKey("job"), "i"), 0, "a", stall=(120.0, "stop"))
    assert Binding.from_header(binding.to_header()) == binding


def test_the_error_is_rebuilt_from_its_arguments():
    error = TaskStalled("job", "work", 3, "stalled: nothing was written for 4m 10s")
    assert str(TaskStalled(*error.args)) == "job 'job', task 3, 'work': stalled: nothing was written for 4m 10s"


class TestSweep:
    """``stalled_since`` of an attempt that wrote at second 100, with a limit of 10 s."""

    @pytest.fixture
    def attempt(self):
        clock = FakeClock(100.0)
        grid = Grid.create(MemoryStore(clock))
        grid.begin("a", 0, owner="w", delivery=Delivery(), stall_after=10_000_000)
        return OpenAttempt(grid.ref, "a", 0, grid.cell("a", 0))

    def test_an_attempt_has_stalled_when_its_limit_has_passed(self, attempt):
        assert stalled_since(attempt, None, 109_999_999) is None
        assert stalled_since(attempt, None, 110_000_000) == 100_000_000

    def test_an_attempt_without_a_limit_never_stalls(self, attempt):
        attempt.cell.stall = attempt.cell.stall._replace(after=0)
        assert stalled_since(attempt, None, 10**12) is None

    def test_an_attempt_is_marked_once(self, attempt):
        attempt.cell.stall = attempt.cell.stall._replace(since=100_000_000)
        assert stalled_since(attempt, None, 10**12) is None

    @pytest.mark.parametrize(
        ("report", "now", "since"),
        [
            (lambda name: Report(pending=[name]), 119, None),
            (lambda name: Report(moving={name: 3.0}), 117, None),
            (lambda name: Report(moving={name: 3.0}), 118, 108),
            (lambda name: Report(moving={name: -5.0}), 112, 100),
            (lambda name: Report(moving={"another": 30.0}), 110, 100),
        ],
    )
    def test_an_attempt_that_waits_moves(self, attempt, report, now, since):
        body = report(cell_name(attempt.ref, "a", 0)).to_json()
        worker = ListedCells.from_record(WorkerRecord("w", body, 115_000_000, 130_000_000), 116_000_000, 1)
        found = stalled_since(attempt, worker, now * 1_000_000)
        assert found == (since and since * 1_000_000)
