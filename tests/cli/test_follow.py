"""A follower ends when the watcher's condition is met, and not before."""

import threading

import pytest

from celery_statemanager import Manager, Status, leases
from celery_statemanager.cli.follow import LOOK, QUIET, Follower, Until
from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.liveness import Activity, Liveness
from celery_statemanager.models import Scope
from celery_statemanager.records import Begin, JobKey, Write
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import Grid


class Clock:
    """Seconds that pass only when a test advances them."""

    def __init__(self):
        self.time = 1_000_000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock)


@pytest.fixture
def follow(store, clock):
    made = []

    def follow(manager, scope=None, until=Until.SETTLED):
        made.append(Follower(store, store.get_job(manager.ref.key), scope or Scope(), until, clock=clock))
        return made[-1]

    yield follow
    for each in made:
        each.close()


def cells(events):
    return [(event.state.tag, event.state.task_index, event.replay) for event in events if event is not None]


def test_a_planned_job_is_followed_until_it_has_settled(store, write, follow):
    job = Manager.create(store, "job", num_tasks=2, tags=("a",))
    write("job", (0, "a", 40, None))
    events = follow(job).events()
    assert cells([next(events)]) == [("a", 0, True)]
    write("job", (0, "a", Status.FINISHED, None), (1, "a", -1, "boom"))
    assert cells(events) == [("a", 0, False), ("a", 1, False)]


def test_a_job_without_a_plan_is_followed_until_it_has_been_quiet(store, write, follow, clock):
    job = Manager.create(store, "job", num_tasks=1)
    write("job", (0, "a", Status.FINISHED, None))
    events = follow(job).events()
    assert cells([next(events)]) == [("a", 0, True)]
    assert next(events) is None
    write("job", (0, "b", Status.STARTED, None))
    assert cells([next(events)]) == [("b", 0, False)]
    clock.time += QUIET
    assert next(events) is None
    write("job", (0, "b", Status.FINISHED, None))
    assert cells([next(events)]) == [("b", 0, False)]
    clock.time += QUIET
    assert cells(events) == []


def test_an_old_job_without_a_plan_is_shown_at_once(store, write, follow, clock):
    job = Manager.create(store, "job", num_tasks=1)
    write("job", (0, "a", Status.FINISHED, None))
    clock.time += 3_600
    assert cells(follow(job).events()) == [("a", 0, True)]


def test_the_current_states_are_read_once(store, write, follow):
    job = Manager.create(store, "job", num_tasks=2, tags=("a",))
    write("job", (0, "a", 40, None))
    assert cells(follow(job, until=Until.NOW).events()) == [("a", 0, True)]


def test_following_forever_continues_after_the_end(store, write, follow, clock):
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    write("job", (0, "a", Status.FINISHED, None))
    follower = follow(job, until=Until.FOREVER)
    events = follower.events()
    assert cells([next(events)]) == [("a", 0, True)]
    clock.time += 3_600
    assert next(events) is None
    write("job", (0, "extra", 40, None))
    assert cells([next(events)]) == [("extra", 0, False)]
    follower.close()
    assert cells(events) == []


def test_only_the_scope_is_read(store, write, follow):
    job = Manager.create(store, "job", num_tasks=2, tags=("a", "b"))
    write("job", *((index, tag, 40, None) for index in (0, 1) for tag in ("a", "b")))
    assert cells(follow(job, Scope("a", 1), Until.NOW).events()) == [("a", 1, True)]
    assert cells(follow(job, Scope(tag="b"), Until.NOW).events()) == [("b", 0, True), ("b", 1, True)]


def test_a_deleted_job_ends_it(store, write, follow):
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    follower = follow(job)
    events = follower.events()
    assert next(events) is None
    job.delete_job()
    assert cells(events) == []
    assert follower.deleted


def test_a_job_replaced_by_a_new_one_counts_as_deleted(store, follow):
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    follower = follow(job)
    events = follower.events()
    assert next(events) is None
    job.delete_job()
    Manager.create(store, "job", num_tasks=1, tags=("a",))
    assert cells(events) == []
    assert follower.deleted


def test_the_record_is_read_again_periodically(store, follow, clock, cancel):
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    Manager.open(store, "job", task_index=0).set_state("a", 40)
    follower = follow(job)
    events = follower.events()
    next(events)
    cancel(store, "job")
    clock.time += 5
    next(events)
    assert follower.job.cancelled.reason == "user asked"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), True),
        (Scope(tag="a"), True),
        (Scope(tag="b"), False),
        (Scope(task_index=0), False),
        (Scope("a", 1), True),
    ],
)
def test_failed_refers_to_the_scope(store, write, follow, scope, expected):
    job = Manager.create(store, "job", num_tasks=2, tags=("a", "b"))
    write("job", (0, "a", Status.FINISHED, None), (1, "a", -1, None))
    assert follow(job, scope).failed() is expected


class CountingStore(MemoryStore):
    """A memory store that counts the reads of the worker records."""

    looks = 0

    def list_workers(self, *arguments, **options):
        self.looks += 1
        return super().list_workers(*arguments, **options)


def submitted(store):
    """A submitted job of one row that a worker runs."""
    job = Grid.submitted(store, 1).job
    store.begin(job.ref, Begin(tag="a", task_index=0, event_id="e", owner="w1"))
    leases.renew(store, "w1", leases.Report([leases.cell_name(job.ref, "a", 0)]), 30.0)
    return job


def write_progress(store, job, number):
    store.write(job.ref, Write(tag="a", task_index=0, status=2 + number, event_id=f"e{number}", attempt=1))


def test_the_worker_records_are_read_every_few_seconds_while_nothing_changes(clock):
    store = CountingStore(clock)
    events = Follower(store, submitted(store), Scope(), clock=clock).events()
    assert next(events) is not None
    for _ in range(10):
        assert next(events) is None
        clock.time += LOOK / 5
    assert store.looks <= 1 + 10 / 5
    events.close()


def test_the_worker_records_are_not_read_while_changes_arrive(clock):
    store = CountingStore(clock)
    job = submitted(store)
    events = Follower(store, job, Scope(), clock=clock).events()
    assert next(events) is not None
    assert next(events) is None
    known = store.looks
    for number in range(5):
        write_progress(store, job, number)
        clock.time += LOOK / 2
        assert next(events) is not None
    assert store.looks == known == 1
    events.close()


def test_the_worker_records_are_not_read_for_a_job_without_messages(clock):
    store = CountingStore(clock)
    Manager.create(store, "managers", num_tasks=1, tags=("a",))
    events = Follower(store, store.get_job(JobKey("managers")), Scope(), clock=clock).events()
    for _ in range(3):
        assert next(events) is None
        clock.time += LOOK
    assert store.looks == 0
    events.close()


def test_the_end_of_the_last_lease_is_noticed_at_once(clock):
    store = CountingStore(clock)
    follower = Follower(store, submitted(store), Scope(), clock=clock)
    events = follower.events()
    assert next(events) is not None
    clock.time += 28.9
    assert next(events) is None
    assert follower.liveness.activity is Activity.WORKING
    clock.time += 1.2
    assert next(events) is None
    assert follower.liveness == Liveness(Activity.NO_WORKER, lost=True)
    events.close()


def test_a_worker_that_returns_is_noticed_while_changes_arrive(clock):
    store = CountingStore(clock)
    job = submitted(store)
    follower = Follower(store, job, Scope(), clock=clock)
    events = follower.events()
    assert next(events) is not None
    clock.time += 31
    assert next(events) is None
    assert follower.liveness.activity is Activity.NO_WORKER
    leases.renew(store, "w1", leases.Report([leases.cell_name(job.ref, "a", 0)]), 30.0)
    clock.time += LOOK
    write_progress(store, job, 1)
    assert next(events) is not None
    assert follower.liveness.activity is Activity.WORKING
    events.close()


def test_the_recovery_of_a_dead_worker_is_noticed_while_changes_arrive(clock):
    store = CountingStore(clock)
    job = submitted(store)
    follower = Follower(store, job, Scope(), clock=clock)
    events = follower.events()
    assert next(events) is not None
    leases.renew(store, "w2", leases.Report([leases.cell_name(job.ref, "a", 0)]), 90.0)
    clock.time += 31
    assert next(events) is None
    assert (follower.liveness.activity, follower.liveness.lost) == (Activity.WORKING, True)
    store.drop_worker("w1")
    clock.time += LOOK
    write_progress(store, job, 1)
    assert next(events) is not None
    assert not follower.liveness.lost
    events.close()


class _Torn(Watch):
    """A watch that fails while its store is down."""

    def __init__(self, store, watch):
        self.store, self.watch = store, watch

    @property
    def cursor(self):
        return self.watch.cursor

    def read(self, timeout):
        if self.store.down.is_set():
            raise StoreUnavailable("pulled the plug")
        return self.watch.read(timeout)

    def close(self):
        self.watch.close()


class FlakyStore(MemoryStore):
    """A memory store that can be made unreachable."""

    def __init__(self, clock):
        super().__init__(clock)
        self.down = threading.Event()

    def watch(self, ref, scope, since=None):
        self._reach()
        return _Torn(self, super().watch(ref, scope, since))

    def get_job(self, key):
        self._reach()
        return super().get_job(key)

    def column_summaries(self, ref, tag=None, *, indexes=False):
        self._reach()
        return super().column_summaries(ref, tag, indexes=indexes)

    def _reach(self):
        if self.down.is_set():
            raise StoreUnavailable("pulled the plug")


def test_a_lost_connection_is_reported_and_restored(clock):
    store = FlakyStore(clock)
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    writer = Manager.open(store, "job", task_index=0)
    follower = Follower(store, store.get_job(job.ref.key), Scope(), clock=clock)
    events = follower.events()
    assert next(events) is None
    assert follower.connected
    store.down.set()
    clock.time += 60
    while follower.connected:
        assert next(events) is None
    writer.set_state("a", Status.FINISHED)
    store.down.clear()
    assert cells(events) == [("a", 0, False)]
    assert follower.connected
    assert follower.job.settled
