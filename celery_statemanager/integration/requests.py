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
from celery_statemanager.integration.brokers import Redelivers, redelivers

T = TypeVar("T")

WORKER_ID = "STATEMANAGER_WORKER_ID"
"""The environment variable in which a worker's main process passes its id to its children, forked or spawned."""

ALONE = "statemanager_alone"
"""The key in ``delivery_info`` of an ``attempts.Alone``, set if this worker received a message while it ran no other
delivery of its cell. Of what the main process knows, only ``delivery_info`` reaches a prefork child."""

_TOKEN = secrets.token_hex(4)
"""A part of the names of processes that are not workers."""

MAX_STOPPED = 1_000
"""Maximum number of attempts that a worker remembers to have ended itself."""


def name_worker() -> None:
    """Set the id of this worker; called in its main process, before its children are created."""
    os.environ[WORKER_ID] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def unname_worker(worker_id: str) -> None:
    """Remove the id of a worker that has ended in a process that continues, such as a test run."""
    if os.environ.get(WORKER_ID) == worker_id:
        del os.environ[WORKER_ID]


def worker_id() -> str:
    """Return the id of this worker, in its main process and in its children; empty outside of a worker."""
    return os.environ.get(WORKER_ID, "")


def process_id() -> str:
    """Return the name of this process: the id of its worker, or one that no other process has."""
    return worker_id() or f"{socket.gethostname()}:{os.getpid()}:{_TOKEN}"


def is_child() -> bool:
    """Return whether this process is one that a worker's main process created to run task bodies."""
    name = worker_id()
    return bool(name) and name.rsplit(":", 2)[1] != str(os.getpid())


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
        """Requests whose bodies have ended without a result: a ``sys.exit`` outside of prefork, or cancelled ones."""
        self._bodies: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        """The runs whose bodies this process executes, with their Celery task ids."""
        self._ending: dict[Any, None] = {}
        """The requests that the worker has cancelled, until their bodies have ended."""
        self._watched: list[Any] = []
        """The requests that ran at the last check. Celery may drop a cancelled request before the next one."""
        self._stopped: dict[str, Binding] = {}
        """Celery task id → the cell, if the worker has ended its last body and has received no message of it since."""

    def add(self, request: Any) -> Binding | None:
        """Add a received request and return its binding; ignore one that is not tracked."""
        binding = binding_of(request.request_dict)
        if binding is None:
            self._add_part(request)
            return None
        self._cells[request] = binding
        last = self._newest.get(request.id)
        earlier = self._update_earlier(request.id, last)
        self._update_stopped([*earlier, last])
        stopped = self._stopped.pop(request.id, None) is not None
        if last is not None and last.time_start is None:  # it waits for its eta or for a free process
            last.delivery_info.pop(ALONE, None)
        elif not any(self._may_run(each) for each in earlier) and request.id not in self._ids_of_ending():
            request.delivery_info[ALONE] = (time.monotonic(), stopped)
        self._newest[request.id] = request
        return binding

    def _add_part(self, request: Any) -> None:
        binding = part_of(request.request_dict)
        if binding is not None:
            self._parts[request] = binding
            self._newest[request.id] = request

    def _may_run(self, request: Any) -> bool:
        return request in worker_state.active_requests and request not in self._abandoned

    def _ids_of_ending(self) -> set[str]:
        return {each.id for each in _copy(self._ending)}

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

    def add_body(self, run: Any) -> None:
        """Record that this process begins to execute a run."""
        self._bodies[run] = run.binding.celery_task_id

    def remove_body(self, run: Any) -> None:
        """Record that this process has executed a run."""
        self._bodies.pop(run, None)

    def find_stopped(self) -> dict[str, Binding]:
        """Look for bodies that the worker has ended itself. Return the cells of which no message was received since.

        At a shutdown, or after a connection loss, Celery cancels requests without a signal. A cancelled body may run
        for a while, for example in a ``finally``. Until it has ended, it counts as running.
        """
        self._update_stopped(_copy(self._cells))
        self._watched.clear()  # first, so that it does not keep those that nothing else does
        self._watched = self._active()
        return dict(self._stopped)

    def _update_stopped(self, requests: Iterable[Any | None]) -> None:
        for request in requests:
            if request is not None and _is_cancelled(request) and request not in self._abandoned:
                self._ending[request] = None
        for request in _copy(self._ending):
            if not self._is_alive(request):
                self._abandoned.add(request)
                self._stopped[request.id] = self._cells[request]
                self._ending.pop(request, None)
        for oldest in _copy(self._stopped)[:-MAX_STOPPED]:
            self._stopped.pop(oldest, None)

    def _is_alive(self, request: Any) -> bool:
        """Return whether the body of a request that has begun is still executed."""
        return request.id in _copy(self._bodies.values()) or _child_lives(request.worker_pid)

    def has_living(self) -> bool:
        """Return whether any body is still executed."""
        return any(self._is_alive(each) for each in self._active())

    def unreported(self) -> list[Any]:
        """Return the requests that have begun and for which Celery has reported no result, those of ended bodies too.

        Celery may drop them, unless the caller keeps them. A signal handler may call this.
        """
        begun = {*_copy(worker_state.active_requests), *_copy(self._ending)}
        return [each for each in begun if each in self._cells]

    def _active(self) -> list[Any]:
        return [each for each in self.unreported() if each not in self._abandoned]

    def running(self) -> list[Binding]:
        """Return the cells whose bodies run in this worker."""
        return [self._cells[each] for each in self._active()]

    def running_parts(self) -> list[tuple[Any, Binding]]:
        """Return the requests of parts of a replacement whose bodies run, if the broker cannot deliver them again."""
        return [
            (each, self._parts[each])
            for each in _copy(worker_state.active_requests)
            if each in self._parts and not (each.task.acks_late and redelivers(each.task.app) is not Redelivers.NEVER)
        ]

    def waiting(self) -> set[weakref.ref[Any]]:
        """Return references to the received requests that do not run yet; cheap, for there may be thousands."""
        return {each for each in self._cells.keyrefs() if _waits(each())}

    def waiting_cells(self) -> list[tuple[Any, Binding]]:
        """Return the same requests with their cells, those with an eta last."""
        held = [each for each in _copy(self._cells.items()) if _waits(each[0])]
        return sorted(held, key=lambda each: each[0].request_dict.get("eta") or "")


def _waits(request: Any | None) -> bool:
    return request is not None and request.time_start is None and not (request.acknowledged or _is_dropped(request))


def _is_dropped(request: Any) -> bool:
    # After a connection loss, Celery cancels the timers of requests with an eta. A request and its timer refer to each
    # other, so it exists until the next garbage collection.
    return bool(getattr(getattr(request, "_eta_timer_entry", None), "canceled", False))


def _is_cancelled(request: Any) -> bool:
    # Celery has no public name for this, and no signal.
    return request.time_start is not None and getattr(request, "_already_cancelled", False)


def _child_lives(pid: int | None) -> bool:
    """Return whether a child of this process is alive; False for any other number, such as the id of a greenlet."""
    try:
        return pid is not None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (ChildProcessError, OverflowError):
        return False


def _copy(values: Iterable[T]) -> list[T]:
    for _ in range(10):
        try:
            return list(values)
        except RuntimeError:  # another thread changed it
            continue
    return []
