"""Subscriptions on every store, while the test pauses the store, cuts its connection or makes it fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from celery_statemanager import (
    JobNotFound,
    Manager,
    State,
    StateEvent,
    StoreError,
    StoreUnavailable,
    Subscription,
    SubscriptionLost,
)
from celery_statemanager.feed import LONGEST_DELAY, PATIENCE, Feed
from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, Column, JobRecord, JobRef
from celery_statemanager.stores.base import Store, Watch
from celery_statemanager.testing import FakeClock, Grid, WrappedStore
from celery_statemanager.testing.kit import FAILED, FINISHED

DEADLINE = 20.0


class Staged(WrappedStore):
    """Run a callback at a step of a subscription: ``before watch``, ``after watch``, ``before list``, …"""

    def __init__(self, inner: Store, steps: dict[str, Callable[[], object]]) -> None:
        super().__init__(inner)
        self.steps = steps
        self.order: list[str] = []

    def step(self, name: str) -> None:
        self.order.append(name)
        self.steps.pop(name, lambda: None)()

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        self.step("before watch")
        watch = super().watch(ref, scope, since)
        self.step("after watch")
        return watch

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        self.step("before list")
        states = super().list_states(ref, scope)
        self.step("after list")
        for number, state in enumerate(states):
            yield state
            self.step(f"after state {number}")
        self.step("after last state")

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        self.step("before summaries")
        summaries = super().column_summaries(ref, tag, indexes=indexes)
        self.step("after summaries")
        return summaries


class Fragile(WrappedStore):
    """Raise ``error`` from new watches, from reads of cut ones, and from lists and summaries."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.error: Exception | None = None
        self.list_error: Exception | None = None
        self.watches: list[FragileWatch] = []
        self.attempts = 0

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        self.attempts += 1
        self.fail(self.error)
        watch = FragileWatch(self, super().watch(ref, scope, since))
        self.watches.append(watch)
        return watch

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        self.fail(self.error or self.list_error)
        return super().list_states(ref, scope)

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        self.fail(self.error)
        return super().column_summaries(ref, tag, indexes=indexes)

    def cut(self) -> None:
        """Lose the connection and the changes that were not read."""
        self.error = StoreUnavailable("cut")
        for watch in self.watches:
            watch.cut()

    def heal(self) -> None:
        self.error = self.list_error = None

    @staticmethod
    def fail(error: Exception | None) -> None:
        if error:
            raise error


class FragileWatch(Watch):
    """A watch that stays lost after ``cut``."""

    def __init__(self, store: Fragile, inner: Watch) -> None:
        self.store = store
        self.inner = inner
        self.lost = self.closed = False

    @property
    def cursor(self) -> str:
        return self.inner.cursor

    def read(self, timeout: float) -> Batch:
        batch = Batch([]) if self.lost else self.inner.read(timeout)
        if self.lost and not self.closed:
            raise self.store.error or StoreUnavailable("cut")
        return batch

    def cut(self) -> None:
        self.lost = True
        self.inner.close()

    def close(self) -> None:
        self.closed = True
        self.inner.close()


@pytest.fixture
def grid(store: Store) -> Grid:
    return Grid.create(store, 3)


@pytest.fixture
def fragile(store: Store) -> Fragile:
    return Fragile(store)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


def cell_version(event: StateEvent | None) -> tuple[str, int, int] | None:
    return event and (event.state.tag, event.state.task_index, event.state.version)


def drain(events: Subscription, last: set[tuple[str, int, int]]) -> list[StateEvent]:
    """Read until the last version of every cell has arrived, and check that versions strictly rise."""
    got: list[StateEvent] = []
    while not last <= {cell_version(event) for event in got}:
        event = events.get(DEADLINE)
        assert event is not None, f"received only {got}"
        got.append(event)
    assert events.get(0.0) is None
    check_rising(got)
    return got


def check_rising(got: list[StateEvent]) -> None:
    for cell in {(event.state.tag, event.state.task_index) for event in got}:
        versions = [event.state.version for event in got if (event.state.tag, event.state.task_index) == cell]
        assert versions == sorted(set(versions))


def read_each_second(events: Subscription, clock: FakeClock) -> None:
    """Read for twice the time after which a subscription is lost, expecting no event."""
    since = clock()
    while clock() - since < 2 * PATIENCE:
        assert events.get(0.0) is None
        clock.advance(1.0)


STEPS = ("before watch", "after watch", "before list", "after list", "after state 0", "after last state")


@pytest.mark.parametrize("step", STEPS)
def test_a_write_at_any_step_of_subscribing_is_delivered_once(grid: Grid, step: str) -> None:
    grid.write("a", 0, 5)
    grid.write("a", 1, 5)
    staged = Staged(grid.store, {step: lambda: (grid.write("a", 0, 6), grid.write("b", 2, 6))})
    with Subscription(staged, grid.ref, Scope()) as events:
        got = drain(events, {("a", 0, 2), ("a", 1, 1), ("b", 2, 1)})
        assert not staged.steps
        assert len(got) <= 4
        assert [event.replay for event in got] == sorted((event.replay for event in got), reverse=True)


def test_a_subscription_watches_before_it_lists(grid: Grid) -> None:
    staged = Staged(grid.store, {})
    with Subscription(staged, grid.ref, Scope()) as events:
        events.get(0.0)
    assert staged.order.index("after watch") < staged.order.index("before list")


def test_writes_during_a_paused_listing_are_delivered(grid: Grid) -> None:
    paused, resume = threading.Event(), threading.Event()
    grid.write("a", 0, 5)
    staged = Staged(grid.store, {"before list": lambda: (paused.set(), resume.wait(DEADLINE))})
    got: list[list[StateEvent]] = []

    def read() -> None:
        with Subscription(staged, grid.ref, Scope()) as events:
            got.append(drain(events, {("a", 0, 3), ("b", 1, 1)}))

    reader = threading.Thread(target=read)
    reader.start()
    assert paused.wait(DEADLINE)
    for write in (("a", 0, 6), ("a", 0, 7), ("b", 1, 1)):
        grid.write(*write)
    resume.set()
    reader.join(DEADLINE)
    assert len(got) == 1


@pytest.mark.parametrize("step", ["before list", "after list", "after state 0"])
@pytest.mark.parametrize("recreate", [False, True])
def test_deletion_at_any_step_ends_the_subscription(grid: Grid, step: str, recreate: bool) -> None:
    grid.write("a", 0, 5)
    grid.write("a", 1, 5)

    def delete() -> None:
        grid.delete()
        if recreate:
            Grid.create(grid.store, 3).write("a", 0, 99)

    staged = Staged(grid.store, {step: delete})
    events = Subscription(staged, grid.ref, Scope())
    got = [events.get(DEADLINE)]
    while got[-1]:
        got.append(events.get(DEADLINE))
    assert events.closed
    assert all(event.state.status == 5 for event in got if event)


@pytest.mark.parametrize("tags", [("a", "b"), None], ids=["planned", "planless"])
@pytest.mark.parametrize("step", [*STEPS, "before summaries"])
def test_until_settled_delivers_the_last_version_of_every_cell_before_it_ends(
    store: Store, tags: tuple[str, ...] | None, step: str
) -> None:
    grid = Grid.create(store, 2, tags)
    for place in (("a", 0), ("b", 0), ("a", 1), ("b", 1)):
        grid.write(*place, 50)

    def settle() -> None:
        for place, status in ((("a", 0), FINISHED), (("b", 1), FAILED), (("a", 1), FINISHED), (("b", 0), FINISHED)):
            grid.run(*place, status)

    staged = Staged(store, {step: settle})
    events = Subscription(staged, grid.ref, Scope(), until_settled=True)
    got = []
    while event := events.get(DEADLINE):
        got.append(event)
    assert events.closed
    assert not staged.steps
    check_rising(got)
    newest = {(event.state.tag, event.state.task_index): event.state.version for event in got}
    assert newest == {("a", 0): 3, ("a", 1): 3, ("b", 0): 3, ("b", 1): 3}


def test_a_write_during_the_check_for_settlement_is_delivered(store: Store) -> None:
    grid = Grid.create(store, 1, ("a",))
    grid.run("a", 0)
    staged = Staged(store, {"before summaries": lambda: grid.write("other", 0, 7)})
    got = [cell_version(event) for event in Subscription(staged, grid.ref, Scope(), until_settled=True)]
    assert got == [("a", 0, 2), ("other", 0, 1)]


def test_until_settled_on_a_planned_job_reads_summaries_only_after_the_record_changes(store: Store) -> None:
    grid = Grid.create(store, 2, ("a",))
    staged = Staged(store, {})
    events = Subscription(staged, grid.ref, Scope(), until_settled=True)
    for status in range(1, 6):
        grid.write("a", 0, status)
        event = events.get(DEADLINE)
        assert event is not None
        assert event.state.status == status
    assert staged.order.count("before summaries") == 1
    for row in (0, 1):
        grid.run("a", row)
    while events.get(DEADLINE):
        pass
    assert events.closed
    assert staged.order.count("before summaries") <= 3


def test_a_lost_connection_is_restored_and_missed_changes_are_read(
    grid: Grid, fragile: Fragile, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    grid.write("a", 0, 5)
    with Subscription(fragile, grid.ref, Scope(), clock=clock) as events:
        assert cell_version(events.get(DEADLINE)) == ("a", 0, 1)
        fragile.cut()
        grid.write("a", 0, 6)
        grid.write("a", 0, 7)
        grid.write("b", 1, 1)
        assert events.get(0.0) is None
        assert not events.connected
        assert not events.closed
        fragile.heal()
        clock.advance(1.0)
        got = drain(events, {("a", 0, 3), ("b", 1, 1)})
        assert [event.replay for event in got] == [False, False]
        assert events.connected
        grid.write("b", 1, 2)
        assert cell_version(events.get(DEADLINE)) == ("b", 1, 2)
    assert [watch.closed for watch in fragile.watches] == [True, True]
    assert [record.levelname for record in caplog.records if "subscription" in record.message] == ["WARNING", "INFO"]


def test_a_replay_continues_after_a_lost_connection(grid: Grid, fragile: Fragile, clock: FakeClock) -> None:
    for row in range(3):
        grid.write("a", row, 5)

    def cut_off() -> None:
        fragile.cut()
        raise StoreUnavailable("cut")

    staged = Staged(fragile, {"after state 0": cut_off})
    with Subscription(staged, grid.ref, Scope(), clock=clock) as events:
        assert events.get(0.0) is None
        fragile.heal()
        clock.advance(1.0)
        assert [event.replay for event in drain(events, {("a", 1, 1), ("a", 2, 1)})] == [True, True, True]


@pytest.mark.parametrize("delivered", [0, 1])
def test_a_replay_that_continues_at_a_cursor_survives_a_lost_connection(
    grid: Grid, fragile: Fragile, clock: FakeClock, delivered: int
) -> None:
    for row in range(4):
        grid.write("a", row % 3, 5)
        grid.write("b", row % 3, 5)

    def cut_off() -> None:
        fragile.cut()
        raise StoreUnavailable("cut")

    with grid.manager().subscribe() as earlier:
        passed = [earlier.get(DEADLINE) for _ in range(2)]
    assert passed[-1] is not None
    staged = Staged(fragile, {f"after state {delivered + 2}": cut_off})
    with Subscription(staged, grid.ref, Scope(), since=passed[-1].cursor, clock=clock) as events:
        got = [cell_version(events.get(0.0)) for _ in range(delivered + 1)]
        assert got[-1] is None
        fragile.heal()
        clock.advance(1.0)
        rest = drain(events, {("a", 0, 2), ("b", 0, 2)})
        every = {*map(cell_version, passed), *got[:-1], *map(cell_version, rest)}
        assert every == {(state.tag, state.task_index, state.version) for state in grid.states()}
        assert len(rest) == 4 - delivered


def test_frequent_reads_with_short_timeouts_reconnect(grid: Grid, fragile: Fragile) -> None:
    clock = FakeClock()
    with Subscription(fragile, grid.ref, Scope(), clock=clock) as events:
        fragile.cut()
        grid.write("a", 0, 5)
        assert events.get(0.0) is None
        fragile.heal()
        got = []
        for _ in range(12):
            clock.advance(0.1)
            got.append(cell_version(events.get(0.0)))
        assert [event for event in got if event] == [("a", 0, 1)]


def test_pauses_between_attempts_double_from_one_second_to_sixty(
    grid: Grid, fragile: Fragile, clock: FakeClock
) -> None:
    feed = Feed(fragile, grid.ref, Scope(), clock)
    fragile.cut()
    feed.read(0.0)
    pauses = []
    for _ in range(8):
        attempts, since = fragile.attempts, clock()
        while fragile.attempts == attempts:
            clock.advance(0.125)
            feed.read(0.0)
        pauses.append(clock() - since)
    for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 32, LONGEST_DELAY, LONGEST_DELAY)):
        assert longest / 2 <= pause <= longest + 0.125
    feed.close()


def test_pauses_start_at_one_second_after_a_successful_reconnection(
    grid: Grid, fragile: Fragile, clock: FakeClock
) -> None:
    feed = Feed(fragile, grid.ref, Scope(), clock)
    for _ in range(3):
        fragile.cut()
        feed.read(0.0)
        for _ in range(4):
            clock.advance(60.0)
            feed.read(0.0)
        assert not feed.connected
        fragile.heal()
        clock.advance(60.0)
        assert feed.read(0.0).resync
        assert feed.read(0.0) == Batch([])
    fragile.cut()
    feed.read(0.0)
    fragile.heal()
    clock.advance(1.0)
    assert feed.read(0.0).resync
    feed.close()


def test_a_subscription_is_lost_after_five_minutes_without_connection(
    grid: Grid, fragile: Fragile, clock: FakeClock
) -> None:
    events = Subscription(fragile, grid.ref, Scope(), clock=clock)
    fragile.cut()
    since = clock()
    with pytest.raises(SubscriptionLost, match="300 s") as lost:
        read_each_second(events, clock)
    assert PATIENCE < clock() - since <= PATIENCE + LONGEST_DELAY + 1
    assert isinstance(lost.value.__cause__, StoreUnavailable)
    assert isinstance(lost.value, ConnectionError)
    assert events.closed
    assert events.get(0.0) is None


def test_a_subscription_is_lost_after_five_minutes_of_failing_reads(
    grid: Grid, fragile: Fragile, clock: FakeClock
) -> None:
    events = Subscription(fragile, grid.ref, Scope(), clock=clock)
    fragile.cut()
    events.get(0.0)
    fragile.heal()
    fragile.list_error = StoreUnavailable("cannot read")
    with pytest.raises(SubscriptionLost):
        read_each_second(events, clock)
    assert fragile.attempts < 30


def test_short_outages_do_not_add_up(grid: Grid, fragile: Fragile, clock: FakeClock) -> None:
    with Subscription(fragile, grid.ref, Scope(), clock=clock) as events:
        for status in range(1, 21):
            fragile.cut()
            assert events.get(0.0) is None
            fragile.heal()
            clock.advance(1.0)
            grid.write("a", 0, status)
            assert cell_version(events.get(DEADLINE)) == ("a", 0, status)
            assert events.get(0.0) is None
            clock.advance(100.0)


@pytest.mark.parametrize("where", ["reading", "reconnecting", "listing"])
def test_a_permanent_error_is_raised_at_once(grid: Grid, fragile: Fragile, clock: FakeClock, where: str) -> None:
    events = Subscription(fragile, grid.ref, Scope(), clock=clock)
    fragile.cut()
    if where == "reading":
        fragile.error = StoreError("wrong password")
    else:
        assert events.get(0.0) is None
        fragile.heal()
        setattr(fragile, "error" if where == "reconnecting" else "list_error", StoreError("wrong password"))
        clock.advance(1.0)
    with pytest.raises(SubscriptionLost, match="wrong password") as lost:
        events.get(0.0)
    assert isinstance(lost.value.__cause__, StoreError)
    assert events.closed


def test_an_error_while_subscribing_is_raised_and_closes_the_watch(grid: Grid, fragile: Fragile) -> None:
    fragile.list_error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        Subscription(fragile, grid.ref, Scope())
    assert [watch.closed for watch in fragile.watches] == [True]
    fragile.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        Manager.open(fragile, "job").subscribe()


def test_a_job_deleted_during_an_outage_ends_the_subscription(grid: Grid, fragile: Fragile, clock: FakeClock) -> None:
    events = Subscription(fragile, grid.ref, Scope(), clock=clock)
    fragile.cut()
    assert events.get(0.0) is None
    grid.delete()
    Grid.create(grid.store)
    fragile.heal()
    clock.advance(1.0)
    assert list(events) == []
    assert events.closed


def test_a_job_settled_during_an_outage_ends_the_subscription_after_its_last_states(
    store: Store, fragile: Fragile, clock: FakeClock
) -> None:
    grid = Grid.create(store, 2, ("a",))
    events = Subscription(fragile, grid.ref, Scope(), until_settled=True, clock=clock)
    fragile.cut()
    assert events.get(0.0) is None
    grid.run("a", 1)
    grid.run("a", 0, FAILED)
    fragile.heal()
    clock.advance(1.0)
    assert sorted(filter(None, map(cell_version, events))) == [("a", 0, 2), ("a", 1, 2)]


def test_close_ends_a_wait_for_the_connection(grid: Grid, fragile: Fragile) -> None:
    events = Subscription(fragile, grid.ref, Scope(), clock=FakeClock())
    fragile.cut()
    assert events.get(0.0) is None
    reader = threading.Thread(target=lambda: list(events), daemon=True)
    reader.start()
    events.close()
    reader.join(DEADLINE)
    assert not reader.is_alive()


def test_a_barrier_waits_across_a_lost_connection(grid: Grid, fragile: Fragile) -> None:
    cut = threading.Event()

    class CutOnce(Fragile):
        def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
            watch = super().watch(ref, scope, since)
            if len(self.watches) == 1:
                self.watches[0].cut()
                cut.set()
            return watch

    writer = threading.Thread(target=lambda: cut.wait(DEADLINE) and [grid.write("a", row, 10) for row in range(3)])
    writer.start()
    states = Manager.open(CutOnce(grid.store), "job").synchronize("a", 10, timeout=DEADLINE)
    writer.join()
    assert [state.status for state in states] == [10, 10, 10]


def test_subscribing_to_a_deleted_job_raises_job_not_found(grid: Grid) -> None:
    manager = grid.manager()
    grid.delete()
    with pytest.raises(JobNotFound):
        manager.subscribe()
