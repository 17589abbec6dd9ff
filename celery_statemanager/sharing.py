"""Sources of a store, each read by one thread of this process for all its users."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from celery_statemanager.stores.base import Store


class Source(Protocol):
    """What users share.

    Attributes:
        users: their number, 0 at first.
    """

    users: int

    @property
    def ended(self) -> bool:
        """Whether it has ended. New users get another source."""

    def start(self) -> None:
        """Start to read, unless it has started."""

    def close(self) -> None:
        """End it without waiting."""


K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound=Source)


class Sharing(Generic[K, S]):
    """The sources of this process by store and key. A forked child, which has none of their threads, begins without.

    Args:
        create: returns a new source.
    """

    def __init__(self, create: Callable[[Store, K], S]) -> None:
        self._create = create
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def acquire(self, store: Store, key: K) -> S:
        """Return the source of a key. Start one if none is running. Raises: what its start raises."""
        with self._lock:
            sources = self._sources.setdefault(store, {})
            source = sources.get(key)
            if source is None or source.ended:
                source = sources[key] = self._create(store, key)
            source.users += 1
        try:
            source.start()
        except BaseException:
            self.release(store, key, source)
            raise
        return source

    def release(self, store: Store, key: K, source: S) -> None:
        """End the use of a source. The last user closes it."""
        with self._lock:
            source.users -= 1
            if source.users:
                return
            sources = self._sources.get(store, {})
            if sources.get(key) is source:
                del sources[key]
        source.close()

    def _forget(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end a use while this thread holds it
        self._sources: weakref.WeakKeyDictionary[Store, dict[K, S]] = weakref.WeakKeyDictionary()
