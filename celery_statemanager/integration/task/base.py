"""``StatefulTask``: the task class with ``self.state``, which drops deliveries that must not run."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature, chunks, group, maybe_signature
from celery.exceptions import Ignore
from celery.result import allow_join_result

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration import redelivery, stalling
from celery_statemanager.integration.binding import binding_of
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.task.replacement import ends_in_group, leaves, pass_on
from celery_statemanager.integration.task.run import VETOES, run_of
from celery_statemanager.integration.task.running import serving
from celery_statemanager.integration.task.state import TaskState, current_state
from celery_statemanager.records import JobRef

__all__ = ["StatefulTask", "TaskState", "current_state"]

logger = logging.getLogger(__name__)


def _veto(task: Task[Any, Any]) -> None:
    """Raise ``Ignore`` if the store rejected the begin of the current execution."""
    run = run_of(task)
    binding = binding_of(task.request) if run is None else None
    if binding is not None and tracker_of(task.app) is None:
        _warn_no_manager(task.app.main, binding.ref)
    if run is not None and run.verdict is not None:
        raise Ignore(f"not run: {run.verdict.value}")


def _vetoing(own: Any) -> Callable[[Task[Any, Any], str, Any, Any], None]:
    """Return a ``before_start`` with the veto, and then the one that a task defines: any attribute of its class."""

    def before_start(self: Task[Any, Any], task_id: str, args: Any, kwargs: Any) -> None:
        _veto(self)
        (own.__get__(self, type(self)) if hasattr(own, "__get__") else own)(task_id, args, kwargs)

    setattr(before_start, VETOES, True)
    return before_start


class StatefulTask(Task):  # type: ignore[type-arg]
    """A task with ``self.state``, its state in the job that it belongs to.

    A task that Celery makes with it as its base (``@app.task(base=StatefulTask)``) also inherits the app's own task
    class, such as the one that gives ``delay_on_commit`` to a Django project.

    Attributes:
        tag: the column of its states; ``"default"`` when not given.
        on_lost: what a sweep does if the worker is lost: ``mark``, ``requeue`` or ``auto``. The default is the setting
            ``statemanager_on_lost``; ``submit`` rejects other values.
        keep_result: whether a job keeps what this task returns as the last one of a row, even if it was submitted
            without ``results=True``.
        stall_after: the seconds after which an execution that has written no state counts as stalled; None for no
            limit. ``submit(stall_after=...)`` wins.
        on_stall: ``report``, the default, only marks the state of a stalled execution; ``stop`` also lets its next
            write raise ``TaskStalled``. ``submit(on_stall=...)`` wins.
    """

    abstract = True
    tag: str | None = None
    on_lost: str | None = None
    keep_result: bool = False
    stall_after: float | None = None
    on_stall: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the app's own task class to a task created by Celery, and check the policy of any other class.

        Raises: ConfigurationError – the classes do not combine, or the policy is invalid.
        """
        app = vars(cls).get("app")
        if isinstance(app, Celery):
            _add_task_class_of(app, cls)
        super().__init_subclass__(**kwargs)
        if "app" not in vars(cls):  # Celery creates the others, for any app of the process; submit checks them
            redelivery.check(cls.__qualname__, cls.on_lost)
            stalling.check_task(cls.__qualname__, cls)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the task class to an app, as Celery does, and add the veto to its ``before_start``.

        It drops a delivery whose cell has finished or runs elsewhere, or whose job has settled. It is added here, so
        that a class may override ``before_start`` without calling it.
        """
        bound = super().bind(app)
        own = inspect.getattr_static(cls, "before_start")  # of Celery, a subclass, a mixin, an option or annotations
        if not hasattr(own, VETOES):
            cls.before_start = _vetoing(own)  # type: ignore[method-assign,assignment]
        return bound

    @property
    def state(self) -> TaskState:
        """The state of this execution; false if it is untracked."""
        return TaskState(serving(self), self.name)

    def replace(self, sig: Any) -> Any:
        """Replace this task by any canvas; see ``celery.Task.replace``.

        Signatures decoded from JSON are accepted, and chunks run as a group. If the replacement ends in several tasks,
        an additional one collects their results. It has the id of this task and ends its cell.
        """
        new: Any = maybe_signature(sig, app=self.app)
        if isinstance(new, Signature) and new.task == "celery.chunks":  # decoded from JSON it has no class of its own
            decoded: Any = chunks.from_dict(new, app=self.app)
            new = decoded.group()
        if not isinstance(new, group) and ends_in_group(new):
            new |= self.app.tasks["celery.accumulate"].s(index=0)
        return super().replace(new)

    def on_replace(self, sig: Signature[Any]) -> Any:
        """Pass the cell of this task on to the tasks of the replacement."""
        if not pass_on(self, str(sig.task), leaves(sig)):
            return super().on_replace(sig)
        with (
            allow_join_result() if self.request.is_eager else nullcontext()
        ):  # Celery waits for the result inside this task
            return super().on_replace(sig)


def _add_task_class_of(app: Celery, task: type) -> None:
    """Add the app's own task class, which an explicit base replaces, as the last base of a task's class."""
    own: type = app.Task
    if issubclass(task, own):
        return
    try:
        task.__bases__ = (*(base for base in task.__bases__ if not issubclass(own, base)), own)
    except TypeError as error:
        written = own.__mro__[1] if "_app" in vars(own) else own  # app.Task is a class that Celery derives
        bases = ", ".join(base.__name__ for base in (*task.__bases__, written))
        raise ConfigurationError(
            f"the base of task {task.__name__!r} and the task class of app {app.main!r}, {written.__name__}, do not "
            f"combine: 'class {task.__name__}({bases})' must be possible; change the bases of one of them ({error})"
        ) from error


@lru_cache(maxsize=1_000)
def _warn_no_manager(app: str | None, job: JobRef) -> None:
    """Log once that tasks of a job run in an app without a ``StateManager``."""
    logger.error(
        "app %r has no StateManager: the states of its tasks are not written; "
        "call StateManager(app) in a module that its workers load",
        app,
        extra={"job_id": job.key.job_id},
    )
