"""``StatefulTask``: signals write the states, this adds ``self.state`` and the veto."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import Task
from celery.canvas import Signature
from celery.exceptions import Ignore

from celery_statemanager.integration import redelivery
from celery_statemanager.integration.binding import HEADER, binding_of
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.task.run import run_of, warn_no_manager
from celery_statemanager.integration.task.state import TaskState, current_state

__all__ = ["StatefulTask", "TaskState", "current_state"]


class StatefulTask(Task):  # type: ignore[type-arg]
    """A task that knows its place in a job.

    Attributes:
        tag: the column under which it runs; ``"default"`` when not given.
        on_lost: ``mark``, ``requeue`` or ``auto``, should its worker be gone; the setting when not given. Another
            is refused by ``submit``.
    """

    abstract = True
    tag: str | None = None
    on_lost: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class with a policy that does not exist. Raises: ConfigurationError."""
        super().__init_subclass__(**kwargs)
        if "app" not in vars(cls):  # else Celery makes it, for any app of the process: submit checks it
            redelivery.check(cls.__qualname__, cls.on_lost)

    @property
    def state(self) -> TaskState:
        """This execution's state; false when it is untracked."""
        return TaskState(run_of(self))

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Refuse a delivery whose cell is finished, runs elsewhere, or whose job is closed."""
        run = run_of(self)
        binding = binding_of(self.request) if run is None else None
        if binding is not None and tracker_of(self.app) is None:
            warn_no_manager(self.app.main, binding.ref)
        if run is not None and run.verdict is not None:
            raise Ignore(f"not run: {run.verdict.value}")
        super().before_start(task_id, args, kwargs)

    def on_replace(self, sig: Signature[Any]) -> Any:
        """Hand the cell over to the task that takes this one's id."""
        run = run_of(self)
        if run is not None:
            for leaf in _leaves(sig):
                if leaf.options.get("task_id") == self.request.id:
                    leaf.options["headers"] = {**(leaf.options.get("headers") or {}), HEADER: run.binding.to_header()}
            run.replaced_by = sig.task
        return super().on_replace(sig)


def _leaves(signature: Any) -> Iterator[Signature[Any]]:
    """Give the task signatures inside any canvas."""
    inner = [*(getattr(signature, "tasks", None) or ())]
    body = getattr(signature, "body", None)
    if not inner and body is None:
        yield signature
    for each in [*inner, *([] if body is None else [body])]:
        yield from _leaves(each)
