"""The id of a worker, and the messages that its main process holds: received, waiting, running."""

from __future__ import annotations

import os
import secrets
import socket
import time
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

from celery.worker import state as worker_state

from celery_statemanager.integration.binding import Binding, binding_of, part_of

T = TypeVar("T")

WORKER_ID = "STATEMANAGER_WORKER_ID"
"""The environment variable in which a worker's main process passes its id to its children, forked or spawned."""

ALONE_SINCE = "statemanager_alone"
"""The key in ``delivery_info`` of the monotonic time at which a message was received while this worker ran no other
delivery of its cell. Of what the main process knows, only ``delivery_info`` reaches a prefork child."""


def name_worker() -> None:
    """Set the id of this worker; called in its main process, before its children are created."""
    os.environ[WORKER_ID] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def worker_id() -> str:
    """Return the id of this worker, in its main process and in its children; empty outside of a worker."""
    return os.environ.get(WORKER_ID, "")


def is_child() -> bool:
    """Return whether this process is one that a worker's main process created to run task bodies."""
    _, pid, _ = worker_id().rsplit(":", 2) if worker_id() else ("", str(os.getpid()), "")
    return pid != str(os.getpid())


class HeldMessages:
    """The messages for tasks of one ``StateManager`` that a worker's main process holds; empty in other processes.

    It holds no message itself: each is found for as long as Celery keeps its request object.
    """

    def __init__(self) -> None:
        self._newest: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        """Celery task id → the newest request of it: some signals come with the id only."""
        self._earlier: dict[str, weakref.WeakSet[Any]] = {}
        """Celery task id → earlier requests of it, where one was received while another was held."""
        self._cells: weakref.WeakKeyDictionary[Any, Binding] = weakref.WeakKeyDictionary()
        self._parts: weakref.WeakKeyDictionary[Any, Binding] = weakref.WeakKeyDictionary()
        """Requests of parts of a replacement, with the binding of the task that waits for each."""
        self._abandoned: weakref.WeakSet[Any] = weakref.WeakSet()
        """Requests that Celery counts as active though their bodies have ended: a ``sys.exit`` outside of prefork."""

    def add(self, request: Any) -> None:
        """Add a received request; ignore one that is not tracked."""
        binding = binding_of(request.request_dict)
        if binding is None:
            self._add_part(request)
            return
        self._cells[request] = binding
        last = self._newest.get(request.id)
        earlier = self._update_earlier(request.id, last)
        if last is not None and last.time_start is None:  # it waits for its eta or for a free process
            last.delivery_info.pop(ALONE_SINCE, None)
        elif not any(each in worker_state.active_requests and each not in self._abandoned for each in earlier):
            request.delivery_info[ALONE_SINCE] = time.monotonic()
        self._newest[request.id] = request

    def _add_part(self, request: Any) -> None:
        binding = part_of(request.request_dict)
        if binding is not None:
            self._parts[request] = binding
            self._newest[request.id] = request

    def _update_earlier(self, task_id: str, last: Any | None) -> list[Any]:
        """Return the held requests of an id, after adding the last one to those that another has followed."""
        if last is not None:
            for gone in [each for each, held in self._earlier.items() if not held]:
                del self._earlier[gone]
            self._earlier.setdefault(task_id, weakref.WeakSet()).add(last)
        return list(self._earlier.get(task_id, ()))

    def find(self, task_id: str) -> Any | None:
        """Return the newest request of a Celery task id that this worker holds; None if it holds none."""
        return self._newest.get(task_id)

    def of_execution(self, context: Any) -> Any | None:
        """Return the request whose body runs with this task request; None if it runs in another process."""
        info = context.delivery_info
        active = _copy(worker_state.active_requests)
        return next((each for each in active if each.request_dict.get("delivery_info") is info), None)

    def abandon(self, task_id: str) -> None:
        """Record that the body of a running request has ended, because Celery does not report it."""
        self._abandoned.update(each for each in _copy(worker_state.active_requests) if each.id == task_id)

    def running(self) -> list[Binding]:
        """Return the cells whose bodies run in this worker."""
        active = [each for each in _copy(worker_state.active_requests) if each not in self._abandoned]
        return [self._cells[each] for each in active if each in self._cells]

    def running_parts(self) -> list[tuple[Any, Binding]]:
        """Return the requests of parts of a replacement whose bodies run, if the broker cannot deliver them again."""
        return [
            (each, self._parts[each])
            for each in _copy(worker_state.active_requests)
            if each in self._parts and not each.task.acks_late
        ]

    def waiting(self) -> set[weakref.ref[Any]]:
        """Return references to the received requests that do not run yet; cheap, for there may be thousands."""
        return {each for each in self._cells.keyrefs() if _waits(each())}

    def waiting_cells(self) -> list[tuple[Any, Binding]]:
        """Return the same requests with their cells, those with an eta last."""
        held = [each for each in _copy(self._cells.items()) if _waits(each[0])]
        return sorted(held, key=lambda each: each[0].request_dict.get("eta") or "")


def _waits(request: Any | None) -> bool:
    return request is not None and request.time_start is None and not request.acknowledged


def _copy(values: Iterable[T]) -> list[T]:
    for _ in range(10):
        try:
            return list(values)
        except RuntimeError:  # another thread changed it
            continue
    return []
