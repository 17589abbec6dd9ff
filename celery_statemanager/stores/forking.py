"""Fork safety: stores release connections and take their locks before ``os.fork``, and release the locks after it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object that no other thread may use while its process forks."""

    def before_fork(self) -> None:
        """Wait for calls in progress, lock the object, and release what a child must not inherit."""

    def after_fork(self) -> None:
        """Unlock the object, in the parent and in the child."""


_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_locked: list[ForkAware] = []


def fork_aware(thing: ForkAware) -> None:
    """Call the object's methods before and after every fork of this process, while the object exists."""
    _registered.add(thing)


def _lock_all() -> None:
    for thing in list(_registered):
        thing.before_fork()
        _locked.append(thing)


def _unlock_all() -> None:
    while _locked:
        _locked.pop().after_fork()


os.register_at_fork(before=_lock_all, after_in_parent=_unlock_all, after_in_child=_unlock_all)
