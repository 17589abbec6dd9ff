"""The messages that a worker's main process holds: by id, running, received and not begun."""

from __future__ import annotations

import os
import secrets
import socket
import weakref
from collections.abc import Iterator
from typing import Any

from celery.worker import state as worker_state

from celery_statemanager.integration.binding import Binding, binding_of

WORKER_ID = "STATEMANAGER_WORKER_ID"
"""The environment variable in which a worker's main process names itself to its children, forked or spawned."""

_received: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Celery task id → the worker's request object: some outcomes come without their headers."""

_main_pid = 0


def name_worker() -> None:
    """Name this worker; called in its main process, before its children are made."""
    global _main_pid  # noqa: PLW0603 - one process is one worker
    _main_pid = os.getpid()
    os.environ[WORKER_ID] = f"{socket.gethostname()}:{_main_pid}:{secrets.token_hex(4)}"


def worker_id() -> str:
    """Give this worker's name, in its main process and in its children; empty outside of a worker."""
    return os.environ.get(WORKER_ID, "")


def is_child() -> bool:
    """Whether this process is one that a worker's main process made to run bodies."""
    return bool(worker_id()) and os.getpid() != _main_pid


def remember(request: Any) -> None:
    """Keep a received message findable by its id, for as long as the worker holds it."""
    if binding_of(request.request_dict) is not None:
        _received[request.id] = request


def find(task_id: str) -> Any | None:
    """Give the headers of a message that this worker holds."""
    request = _received.get(task_id)
    return None if request is None else request.request_dict


def runs_here(task_id: str) -> bool | None:
    """Whether another message of this id runs in this very process; None where the bodies run in others."""
    if os.getpid() != _main_pid:
        return None
    return len([each for each in _copied(worker_state.active_requests) if each.id == task_id]) > 1


def running() -> list[Binding]:
    """Give the cells whose bodies run in this worker."""
    return [binding for _, binding in _bound(worker_state.active_requests)]


def received() -> list[tuple[Any, Binding]]:
    """Give the messages that were received and whose bodies do not run yet."""
    active = set(_copied(worker_state.active_requests))
    return [(request, binding) for request, binding in _bound(worker_state.reserved_requests) if request not in active]


def _bound(requests: Any) -> Iterator[tuple[Any, Binding]]:
    for request in _copied(requests):
        binding = binding_of(request.request_dict)
        if binding is not None:
            yield request, binding


def _copied(requests: Any) -> list[Any]:
    for _ in range(10):
        try:
            return list(requests)
        except RuntimeError:  # it changed while it was copied
            continue
    return []
