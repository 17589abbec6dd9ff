"""Tests of calls that a signal handler interrupts, as a soft time limit or Ctrl-C does: no lock stays held."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import celery_statemanager
from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.records import new_event_id
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until

PACKAGE = f"{Path(celery_statemanager.__file__).parent}/"


class Struck(BaseException):
    """The exception that the signal handler raises."""


class SignalContract:
    """The rules for a signal handler that raises when any function of the store begins."""

    def test_a_write_that_is_broken_off_was_made_or_not_and_keeps_nobody_from_writing(self, store: Store) -> None:
        grid = Grid.create(store)
        for event_id in broken_off_everywhere(store, lambda event_id: grid.write("a", 0, 5, event_id=event_id)):
            before = grid.write("a", 1, 5).cell.version
            assert grid.write("a", 0, 5, event_id=event_id).cell.version == before

    def test_a_refused_write_that_is_broken_off_keeps_nobody_from_writing(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)

        def write(event_id: str) -> None:
            with suppress(AttemptSuperseded):
                grid.write("a", 0, 5, event_id=event_id, attempt=7)

        for _ in broken_off_everywhere(store, write):
            assert grid.cell("a", 0).version == 1

    def test_a_read_that_is_broken_off_keeps_nobody_from_writing(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        grid.write("a", 0, 5)
        for _ in broken_off_everywhere(store, lambda _: store.lowest(grid.ref, Scope("a"))):
            assert store.lowest(grid.ref, Scope("a")).status == 5

    def test_a_watch_that_is_broken_off_keeps_nobody_from_writing(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        with closing(store.watch(grid.ref, Scope("a"))) as watch:
            for _ in broken_off_everywhere(store, lambda _: watch.read(0)):
                pass
            written = grid.write("a", 0, 5).cell.version
            assert [state.version for state in read_until(watch, lambda batch: bool(batch.states)).states] == [written]

    def test_a_subscription_that_is_broken_off_loses_and_repeats_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        for row in range(3):
            grid.write("a", row, 5)
        number, struck = 0, True
        while struck:
            with grid.manager().subscribe() as events:
                struck, rows = replayed(events, number)
                assert rows == [0, 1, 2]
                assert events.get(0) is None
            number += 1
        assert number > 3, "nothing was broken off"


def replayed(events: Subscription, number: int) -> tuple[bool, list[int]]:
    """Read three events and interrupt the first read. Return whether it was interrupted, and the rows of the events."""
    got: list[StateEvent | None] = []
    struck = broken_off(lambda: got.append(events.get(PATIENCE)), number)
    while len(got) < 3:
        got.append(events.get(PATIENCE))
    return struck, [event.state.task_index for event in got if event is not None]


def broken_off_everywhere(store: Store, call: Callable[[str], object]) -> Iterator[str]:
    """Repeat a call and interrupt it at one function of this package after the other.

    After each interruption, check that another thread can write, and yield the event id of the call.

    Args:
        call: called with an event id.
    """
    theirs = Grid.create(store, job_id="theirs")
    counts = partial(ours, places=places_of(store))
    number, struck = 0, True
    while struck:
        event_id = new_event_id()
        struck = broken_off(lambda event_id=event_id: call(event_id), number, counts=counts)  # type: ignore[misc]
        writes_of_another_thread(theirs)
        yield event_id
        number += 1
    assert number > 3, "nothing was broken off"


def ours(frame: FrameType, places: tuple[str, ...] = (PACKAGE,)) -> bool:
    """Return whether a function belongs to this package, or to ``threading`` and is called by this package.

    Args:
        places: prefixes of the paths of the files that count as this package.
    """
    caller = frame.f_back
    if frame.f_code.co_filename == threading.__file__ and caller is not None:
        frame = caller
    return frame.f_code.co_filename.startswith(places)


def places_of(store: Store) -> tuple[str, ...]:
    """Return the path prefixes of a store's functions: this package and, if it is another one, the store's package."""
    package, dot, _ = type(store).__module__.partition(".")
    file = sys.modules[package].__file__ or ""
    return PACKAGE, f"{Path(file).parent}/" if dot else file


def broken_off(
    call: Callable[[], object],
    number: int,
    error: type[BaseException] = Struck,
    counts: Callable[[FrameType], bool] = ours,
) -> bool:
    """Call, and raise when the function with that number begins. Return whether so many functions began.

    Args:
        counts: returns whether a function is counted.
    """
    begun, struck = 0, False

    def strike(frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal begun, struck
        begun += counts(frame)
        if begun > number:
            struck = True
            raise error

    before = sys.gettrace()
    sys.settrace(strike)
    try:
        call()
    except error:
        assert struck
    finally:
        sys.settrace(before)
    return struck


def writes_of_another_thread(grid: Grid) -> None:
    """Write from another thread. Raises: AssertionError if the write fails or takes too long."""
    versions: list[int] = []
    thread = threading.Thread(target=lambda: versions.append(grid.write("a", 0, 5).cell.version), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert versions, "another thread can no longer write"
