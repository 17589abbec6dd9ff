"""The executions whose bodies run in this process, found by the task's request, the context or the pool."""

from __future__ import annotations

import logging
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import current_task

from celery_statemanager.integration import pools

if TYPE_CHECKING:
    from celery_statemanager.integration.task.run import Run

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_statemanager_run"

_context: ContextVar[Run | None] = ContextVar("statemanager_run", default=None)
"""The innermost execution of the context. Celery's stack of requests belongs to a thread, which an asyncio pool shares
between several bodies."""

_warned: set[tuple[str, str]] = set()


class _Body(NamedTuple):
    """A body that runs: the name of its task, the execution around it, and whether the main thread runs it."""

    task: str
    outer: Run | None
    in_main_thread: bool


_active: dict[Run, _Body] = {}


def of_request(request: Any) -> Run | None:
    """Return the execution of a task request; None if it has none in this process."""
    return None if request is None else request.__dict__.get(_ATTRIBUTE)


def attach(request: Any, run: Run) -> None:
    """Attach an execution to a task request."""
    setattr(request, _ATTRIBUTE, run)


def enter(task: Any, run: Run) -> None:
    """Record that the body of an execution is about to run; may be called again."""
    attach(task.request, run)
    if run not in _active:
        in_main_thread = threading.current_thread() is threading.main_thread()
        _active[run] = _Body(task.name, _context.get(), in_main_thread)
    _context.set(run)


def leave(run: Run) -> None:
    """Record that the body has ended."""
    if run.motion is not None:
        run.motion.end()
    if run in _active:
        _context.set(_active.pop(run).outer)


def of(task: Any) -> Run | None:
    """Return the current execution of a task; None if it is untracked or not in this process.

    Where several bodies may share a thread, the request may be that of another one, and only the context is used.
    """
    if pools.current().known:
        return of_request(task.request if task else None)
    own = _context.get()
    return own if own in _of_task(task) else None


def serving(task: Any) -> Run | None:
    """Return the execution of a task for this thread, also if the thread was started by the task."""
    run = of(task)
    if run is not None or current_task or not _active:
        return run
    found, own = _of_task(task), _context.get()
    if own in found and _context_is_exact():
        return own
    if found and _is_only_body(found[0]):
        return found[0]
    if found:
        _warn_of_thread(found[0], "current_state()" if task is current_task else "self.state")
    return None


def _is_only_body(run: Run) -> bool:
    """Return whether all threads of this process can only work for one execution.

    A worker that is embedded in another program runs its bodies outside of the main thread.
    """
    body = _active.get(run)
    return pools.current().one_body and len(_active) == 1 and body is not None and body.in_main_thread


def _of_task(task: Any) -> list[Run]:
    """Return the executions of a task, or of all tasks for ``current_task``."""
    bodies = list(_active.items())
    return [run for run, body in bodies if task is current_task or body.task == task.name]


def _context_is_exact() -> bool:
    """Return whether a thread has the context of a task only if the task passed it, not because it started the thread.

    A thread that serves several tasks was started by one of them.
    """
    return not (pools.current().green or getattr(sys.flags, "thread_inherit_context", False))


def _warn_of_thread(run: Run, used: str) -> None:
    body = _active.get(run)
    name = body.task if body else ""
    if (name, used) in _warned:
        return
    _warned.add((name, used))
    logger.warning(
        "task %r: %s in thread %r, which does not run the task: nothing is written, because other tasks may run in "
        "this process. Write `state = self.state` in the task before the thread starts, and use `state` in the thread "
        "(logged once per task name in each process)",
        name,
        used,
        threading.current_thread().name,
        extra=run.log_extra,
    )
