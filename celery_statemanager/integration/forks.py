"""Locks of Celery and kombu in forked children of a worker.

Threads of this package publish messages in the main process of a worker, which forks its children. A child inherits
each lock in its state at the fork. No thread of the child releases a lock that another thread of the parent held. Each
``cached_property`` of kombu has such a lock for all objects of its class; a channel needs several.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

_PACKAGES = {"celery", "kombu", __name__.partition(".")[0]}


@lru_cache(maxsize=1)
def renew_locks_in_children() -> None:
    """Renew the locks in all children that this process forks from now on. Repeated calls have no effect."""
    os.register_at_fork(after_in_child=_renew_locks)


def _renew_locks() -> None:
    for each in _cached_properties():
        if hasattr(each, "lock"):  # ``functools.cached_property`` has no lock since Python 3.12
            each.lock = threading.RLock()


def _cached_properties() -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES:
            for found in list(vars(module).values()):
                if isinstance(found, type):
                    yield from (each for each in list(vars(found).values()) if isinstance(each, cached_property))
