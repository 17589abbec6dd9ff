"""Stores survive ``os.fork``: what they hold is brought to rest before it and released after it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something that must be at rest while its process forks."""

    def before_fork(self) -> None:
        """Wait for calls under way and let go of what a child may not inherit."""

    def after_fork(self) -> None:
        """Go on, in the parent and in the child alike."""


_known: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_resting: list[ForkAware] = []


def fork_aware(thing: ForkAware) -> None:
    """Tell ``thing`` of every fork of this process, for as long as it lives."""
    _known.add(thing)


def _rest() -> None:
    for thing in list(_known):
        thing.before_fork()
        _resting.append(thing)


def _go_on() -> None:
    while _resting:
        _resting.pop().after_fork()


os.register_at_fork(before=_rest, after_in_parent=_go_on, after_in_child=_go_on)
