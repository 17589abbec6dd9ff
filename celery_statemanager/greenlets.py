"""Determine which parts of Python gevent or eventlet has replaced in this process. Imports neither."""

from __future__ import annotations

import sys
from typing import Any


def has_green_threads() -> bool:
    """Return whether the threads of this process are greenlets."""
    return _is_patched("threading", "thread")


def has_green_sockets() -> bool:
    """Return whether the sockets of this process switch greenlets instead of blocking a thread."""
    return _is_patched("socket", "socket")


def _is_patched(for_gevent: str, for_eventlet: str) -> bool:
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched(for_gevent):
        return True
    eventlet: Any = sys.modules.get("eventlet.patcher")
    return eventlet is not None and bool(eventlet.is_monkey_patched(for_eventlet))
