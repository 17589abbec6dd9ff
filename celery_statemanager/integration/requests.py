"""The messages that a worker's main process holds: by id, running, received and not begun."""

from __future__ import annotations

import os
import secrets
import socket
import time
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

from celery.worker import state as worker_state

from celery_statemanager.integration.binding import Binding, binding_of

T = TypeVar("T")

WORKER_ID = "STATEMANAGER_WORKER_ID"
"""The environment variable in which a worker's main process names itself to its children, forked or spawned."""

_received: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Celery task id → the worker's request object: some outcomes come without their headers."""

_repeated: dict[str, weakref.WeakSet[Any]] = {}
"""Ids under which a message came while an earlier one was held, and of the earlier ones those that still are."""

_cells: weakref.WeakKeyDictionary[Any, Binding] = weakref.WeakKeyDictionary()
"""The request objects of tracked messages, for as long as Celery has them, and their cells."""

_forgotten: weakref.WeakSet[Any] = weakref.WeakSet()
"""Requests that Celery takes for running though their bodies are gone: a ``sys.exit`` outside of prefork."""

ALONE = "statemanager_alone"
"""In the ``delivery_info`` of a message: when it was received, monotonic, if no body of its id ran here then."""


def name_worker() -> None:
    """Name this worker; called in its main process, before its children are made."""
    os.environ[WORKER_ID] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def worker_id() -> str:
    """Give this worker's name, in its main process and in its children; empty outside of a worker."""
    return os.environ.get(WORKER_ID, "")


def is_child() -> bool:
    """Whether this process is one that a worker's main process made to run bodies."""
    _, pid, _ = worker_id().rsplit(":", 2) if worker_id() else ("", str(os.getpid()), "")
    return pid != str(os.getpid())


def remember(request: Any) -> None:
    """Keep a received message findable by its id, for as long as the worker holds it."""
    binding = binding_of(request.request_dict)
    if binding is None:
        return
    _cells[request] = binding
    last = _received.get(request.id)
    earlier = _earlier(request.id, last)
    if last is not None and last.time_start is None:  # it waits, for its time or for a process
        last.delivery_info.pop(ALONE, None)
    elif not any(each in worker_state.active_requests and each not in _forgotten for each in earlier):
        request.delivery_info[ALONE] = time.monotonic()
    _received[request.id] = request


def _earlier(task_id: str, last: Any | None) -> list[Any]:
    """Give the messages of an id that are held as another comes, its last among them if that is not gone already."""
    if last is not None:
        for gone in [each for each, held in _repeated.items() if not held]:
            del _repeated[gone]
        _repeated.setdefault(task_id, weakref.WeakSet()).add(last)
    return list(_repeated.get(task_id, ()))


def find(task_id: str) -> Any | None:
    """Give the newest message of an id that this worker holds."""
    return _received.get(task_id)


def forget(task_id: str) -> None:
    """Note that the body of a running message is gone, though Celery will not say so."""
    _forgotten.update(each for each in _copied(worker_state.active_requests) if each.id == task_id)


def running() -> list[Binding]:
    """Give the cells whose bodies run in this worker."""
    active = [each for each in _copied(worker_state.active_requests) if each not in _forgotten]
    return [_cells[each] for each in active if each in _cells]


def waiting() -> set[weakref.ref[Any]]:
    """Give the messages that were received and whose bodies do not run yet, at little cost: there may be thousands."""
    return {each for each in _cells.keyrefs() if _waits(each())}


def received() -> list[tuple[Any, Binding]]:
    """Give the same with their cells, those that wait for their time last."""
    held = [each for each in _copied(_cells.items()) if _waits(each[0])]
    return sorted(held, key=lambda each: each[0].request_dict.get("eta") or "")


def _waits(request: Any | None) -> bool:
    return request is not None and request.time_start is None and not request.acknowledged


def _copied(requests: Iterable[T]) -> list[T]:
    for _ in range(10):
        try:
            return list(requests)
        except RuntimeError:  # it changed while it was copied
            continue
    return []
