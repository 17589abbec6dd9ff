"""Calls interrupted by a signal handler, as by a soft time limit or Ctrl-C: no lock or connection stays in use."""

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


class Interrupt(BaseException):
    """The exception that the signal handler raises."""


class SignalContract:
    """Tests of signals that arrive at the start of any function of the store."""

    def test_an_interrupted_write_is_atomic_and_blocks_no_other_writer(self, store: Store) -> None:
        grid = Grid.create(store)
        for event_id in interrupt_everywhere(store, lambda event_id: grid.write("a", 0, 5, event_id=event_id)):
            before = grid.write("a", 1, 5).cell.version
            assert grid.write("a", 0, 5, event_id=event_id).cell.version == before

    def test_an_interrupted_refused_write_blocks_no_other_writer(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)

        def write(event_id: str) -> None:
            with suppress(AttemptSuperseded):
                grid.write("a", 0, 5, event_id=event_id, attempt=7)

        for _ in interrupt_everywhere(store, write):
            assert grid.cell("a", 0).version == 1

    def test_an_interrupted_read_blocks_no_other_writer(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        grid.write("a", 0, 5)
        for _ in interrupt_everywhere(store, lambda _: store.lowest(grid.ref, Scope("a"))):
            assert store.lowest(grid.ref, Scope("a")).status == 5

    def test_an_interrupted_watch_blocks_no_other_writer(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        with closing(store.watch(grid.ref, Scope("a"))) as watch:
            for _ in interrupt_everywhere(store, lambda _: watch.read(0)):
                pass
            written = grid.write("a", 0, 5).cell.version
            assert [state.version for state in read_until(watch, lambda batch: bool(batch.states)).states] == [written]

    def test_an_interrupted_subscription_neither_loses_nor_repeats_an_event(self, store: Store) -> None:
        grid = Grid.create(store)
        for row in range(3):
            grid.write("a", row, 5)
        number, interrupted = 0, True
        while interrupted:
            with grid.manager().subscribe() as events:
                interrupted, rows = read_interrupted(events, number)
                assert rows == [0, 1, 2]
                assert events.get(0) is None
            number += 1
        assert number > 3, "nothing was interrupted"


def read_interrupted(events: Subscription, number: int) -> tuple[bool, list[int]]:
    """Interrupt the first of three reads at a function. Return whether that happened, and the rows of the events."""
    got: list[StateEvent | None] = []
    interrupted = interrupt(lambda: got.append(events.get(PATIENCE)), number)
    while len(got) < 3:
        got.append(events.get(PATIENCE))
    return interrupted, [event.state.task_index for event in got if event is not None]


def interrupt_everywhere(store: Store, call: Callable[[str], object]) -> Iterator[str]:
    """Interrupt a call at each function of the store that it calls, in turn. Check that others can write afterwards.

    Args:
        call: receives an event id, which is yielded after each interrupted call.
    """
    other = Grid.create(store, job_id="other")
    counts = partial(is_ours, folders=source_folders(store))
    number, interrupted = 0, True
    while interrupted:
        event_id = new_event_id()
        interrupted = interrupt(lambda event_id=event_id: call(event_id), number, counts=counts)  # type: ignore[misc]
        write_in_another_thread(other)
        yield event_id
        number += 1
    assert number > 3, "nothing was interrupted"


def is_ours(frame: FrameType, folders: tuple[str, ...] = (PACKAGE,)) -> bool:
    """Return whether a frame runs code of this package, or code of ``threading`` that this package calls.

    Args:
        folders: the prefixes of the paths that count.
    """
    caller = frame.f_back
    if frame.f_code.co_filename == threading.__file__ and caller is not None:
        frame = caller
    return frame.f_code.co_filename.startswith(folders)


def source_folders(store: Store) -> tuple[str, ...]:
    """Return the folder of this package and that of the package which defines the store."""
    package, dot, _ = type(store).__module__.partition(".")
    file = sys.modules[package].__file__ or ""
    return PACKAGE, f"{Path(file).parent}/" if dot else file


def interrupt(
    call: Callable[[], object],
    number: int,
    error: type[BaseException] = Interrupt,
    counts: Callable[[FrameType], bool] = is_ours,
) -> bool:
    """Call, and raise at the start of function ``number`` of those that count. Return whether as many were called.

    Args:
        counts: whether a function counts.
    """
    begun, interrupted = 0, False

    def trace(frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal begun, interrupted
        begun += counts(frame)
        if begun > number:
            interrupted = True
            raise error

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except error:
        assert interrupted
    finally:
        sys.settrace(before)
    return interrupted


def write_in_another_thread(grid: Grid) -> None:
    """Write from another thread. Raises: AssertionError if the write hangs or fails."""
    versions: list[int] = []
    thread = threading.Thread(target=lambda: versions.append(grid.write("a", 0, 5).cell.version), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert versions, "another thread cannot write"
