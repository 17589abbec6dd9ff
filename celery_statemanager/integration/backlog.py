"""State writes that the store would not take at once: written from one thread until it does (rule R18)."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound, StoreUnavailable
from celery_statemanager.integration import requests

logger = logging.getLogger(__name__)

MOST = 10_000
FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0
SUSPECT = 2.0
"""Seconds for which a store that just failed is not asked again by a task itself."""

TOLD_EVERY = 1.0
"""Seconds between two whole lists of what waits: each costs its length."""

Key = tuple[str, str]
"""The cell's name, and which of its writes: of each only the newest is kept."""

Action = Callable[[], object]

About = Mapping[str, Any]
"""What log lines about a write carry: its job, row and tag."""


def publish_pending(names: Sequence[str]) -> None:
    """Say which cells wait in this process, if it is a worker's child."""
    with _own_file() as mine:
        if mine is None:
            return
        if not names:
            mine.unlink(missing_ok=True)
            return
        draft = _with_folder(mine).with_suffix(".draft")
        draft.write_text("".join(map(_line, names)), encoding="utf-8")
        draft.replace(mine)


def publish_one_more(name: str) -> None:
    """Say that one more waits; costs the same however many do."""
    with _own_file() as mine:
        if mine is not None:
            with _with_folder(mine).open("a", encoding="utf-8") as file:
                file.write(_line(name))


def pending_in_children() -> list[str]:
    """Give the cells that wait in this worker's living children."""
    names: set[str] = set()
    for file in _folder().glob("*[0-9]"):
        if not _lives(int(file.name)):
            file.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):  # written by now
            whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # the last may be on its way
            names.update(map(json.loads, whole.splitlines()))
    return sorted(names)


@contextmanager
def _own_file() -> Iterator[Path | None]:
    """Give the file of a worker's child, None in any other process; a disk that takes nothing is no task's trouble."""
    try:
        yield _folder() / str(os.getpid()) if requests.is_child() else None
    except OSError as error:
        logger.warning("the main process is not told which states wait here, a sweep may take them for lost: %s", error)


def _with_folder(mine: Path) -> Path:
    mine.parent.mkdir(mode=0o700, exist_ok=True)
    return mine


def _line(name: str) -> str:
    return json.dumps(name) + "\n"


def remove_pending_folder() -> None:
    """Remove the folder, once the children are gone."""
    shutil.rmtree(_folder(), ignore_errors=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir(), f"statemanager-{requests.worker_id().replace(':', '-')}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Backlog:
    """The writes of one process that wait for its store; thread-safe, empty in a forked child.

    Args:
        tell: told the names of the cells whose writes wait once these are fewer, within ``TOLD_EVERY``.
        tell_more: told the name of one more, at once.
    """

    def __init__(
        self,
        tell: Callable[[Sequence[str]], None] = lambda _: None,
        tell_more: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tell = tell
        self._tell_more = tell_more
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked child must: what waits is the parent's, and so is the thread."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # never entered: a signal may strike its exit, which is Python
        self._waiting: dict[Key, tuple[Action, About | None]] = {}
        self._thread: threading.Thread | None = None
        self._suspect_until = 0.0
        self._refused = False
        self._told_at = -math.inf
        self._tell(())

    @property
    def store_is_down(self) -> bool:
        """Whether asking the store now would most likely only block."""
        return self._refused or time.monotonic() < self._suspect_until

    def cells(self) -> list[str]:
        """Name the cells whose writes wait."""
        if not self._waiting:
            return []
        with self._lock:
            return self._names()

    def suspect(self) -> None:
        """Note that the store has just failed."""
        self._suspect_until = time.monotonic() + SUSPECT

    def now_or_later(self, key: Key, action: Action, about: About | None = None) -> None:
        """Do it at once, or from the thread if the store is down or an earlier write of the cell still waits.

        Raises: what ``action`` raises otherwise.
        """
        if not self.store_is_down and not self._waits(key[0]):
            try:
                action()
            except StoreUnavailable:
                self._refused = True
                self.suspect()
            else:
                return
        self.put(key, action, about)

    def put(self, key: Key, action: Action, about: About | None = None) -> None:
        """Do it from the thread, in place of an older one under the same key."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key] = action, about
            else:
                self._make_room()
                self._waiting[key] = action, about
                self._tell_more(key[0])
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="statemanager-backlog", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until nothing waits, for at most ``timeout`` seconds."""
        with self._lock:
            if not self._changed.wait_for(lambda: not self._waiting, timeout):
                logger.error("the store did not come back: the states of %d cells are lost", len(self._waiting))

    def _waits(self, cell: str) -> bool:
        if not self._waiting:  # as a rule, and on every write's way
            return False
        with self._lock:
            return any(name == cell for name, _ in self._waiting)

    def _names(self) -> list[str]:
        return sorted({name for name, _ in self._waiting})

    def _tell_all(self) -> None:
        self._told_at = time.monotonic()
        self._tell(self._names())

    def _make_room(self) -> None:
        if len(self._waiting) >= MOST:
            oldest = next(iter(self._waiting))
            _, about = self._waiting.pop(oldest)
            logger.error("too many states wait for the store: that of cell %s is lost", oldest[0], extra=about)

    def _run(self) -> None:
        delay = FIRST_DELAY
        while True:
            key, action, about = self._next()
            try:
                action()
            except StoreUnavailable as error:
                self._refused = True
                logger.warning("a state waits for the store, trying again: %s", error, extra=about)
                time.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)
                continue
            except (AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound) as error:
                logger.info("state not written: %s", error, extra=about)
            except Exception:
                logger.exception("state not written: cell %s", key[0], extra=about)
            delay, self._refused, self._suspect_until = FIRST_DELAY, False, 0.0
            self._done(key, action)

    def _next(self) -> tuple[Key, Action, About | None]:
        with self._lock:
            self._changed.wait_for(lambda: self._waiting)
            key, (action, about) = next(iter(self._waiting.items()))
            return key, action, about

    def _done(self, key: Key, action: Action) -> None:
        with self._lock:
            if key in self._waiting and self._waiting[key][0] is action:
                del self._waiting[key]
                if not self._waiting or time.monotonic() - self._told_at >= TOLD_EVERY:
                    self._tell_all()
            self._changed.notify_all()


backlog = Backlog(publish_pending, publish_one_more)

os.register_at_fork(after_in_child=backlog.forget)
