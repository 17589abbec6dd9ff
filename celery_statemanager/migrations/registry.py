"""Migration steps by number. Step 3 converts states, jobs or both from schema 2 to schema 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.records import Cell, JobRecord, new_event_id

StateStep = Callable[[JobRecord, Cell], Cell]
"""Return a cell in the layout of the step's number. The job is as it was when its migration began."""
JobStep = Callable[[JobRecord], JobRecord]
"""Return a job in the layout of the step's number.

Only ``latches``, ``cancelled``, ``flow`` and ``tombstoned_at`` may change.
"""

Step = TypeVar("Step", StateStep, JobStep)

_FIXED = ("status", "version", "timestamp", "attempt", "open", "owner")
"""Fields that no step may change, because readers and writers rely on them."""


class Steps:
    """The steps of a schema.

    Steps must be idempotent: a run that resumes an interrupted one may apply a step again.

    ::

        @STEPS.states(2)
        def lower_case(job: JobRecord, cell: Cell) -> Cell:
            return replace(cell, message=cell.message and cell.message.lower())
    """

    def __init__(self) -> None:
        self._states: dict[int, StateStep] = {}
        self._jobs: dict[int, JobStep] = {}

    def states(self, number: int) -> Callable[[StateStep], StateStep]:
        """Return a decorator that registers a step for states. Raises: ValueError if the number is taken or below 1."""
        return _registrar(self._states, number)

    def jobs(self, number: int) -> Callable[[JobStep], JobStep]:
        """Return a decorator that registers a step for jobs, which runs after the steps for their states.

        Raises: ValueError if the number is taken or below 1.
        """
        return _registrar(self._jobs, number)

    @property
    def newest(self) -> int:
        """The schema to which all steps together lead; 0 if there are none."""
        return max((*self._states, *self._jobs), default=0)

    def checked(self, target: Any) -> int:
        """Return a target that the steps reach from schema 1. Raises: ConfigurationError if they do not."""
        if isinstance(target, bool) or not isinstance(target, int) or target < 1:
            raise ConfigurationError(f"the target must be a schema number, 1 … {self.newest}, not {target!r}")
        if target > self.newest:
            raise ConfigurationError(
                f"this release supports schemas up to {self.newest}, not {target}: upgrade celery-statemanager"
            )
        for number in range(1, target):
            if number not in self._states and number not in self._jobs:
                raise ConfigurationError(
                    f"no step leads to schema {number}, so schema {target} cannot be reached: register one, "
                    f"@STEPS.states({number}) or @STEPS.jobs({number})"
                )
        return target

    def state(self, job: JobRecord, cell: Cell, target: int) -> Cell:
        """Return a cell in a later schema. Raises: ValueError if a step changes a field that must not change."""
        new = cell
        for number in range(cell.schema_version + 1, target + 1):
            if number in self._states:
                new = self._states[number](job, new)
            changed = [name for name in _FIXED if getattr(new, name) != getattr(cell, name)]
            if changed:
                raise ValueError(f"step {number} changes a state's {', '.join(changed)}: a step must preserve it")
        return replace(new, schema_version=target)

    def job(self, job: JobRecord, target: int) -> JobRecord:
        """Return a job in a later schema."""
        new = job
        for number in range(job.schema + 1, target + 1):
            new = self._jobs[number](new) if number in self._jobs else new
        return replace(new, schema_version=target)


def _registrar(steps: dict[int, Step], number: int) -> Callable[[Step], Step]:
    if number < 1:
        raise ValueError(f"step numbers start at 1, not {number}")
    if number in steps:
        raise ValueError(f"step {number} is already registered ({steps[number].__qualname__}): use the next number")

    def register(step: Step) -> Step:
        steps[number] = step
        return step

    return register


STEPS = Steps()
"""The steps of this release. They lead to ``models.SCHEMA_VERSION``, the schema of new jobs and states."""


@STEPS.states(1)
def add_event_id(_: JobRecord, cell: Cell) -> Cell:
    """Add the event id that states of other programs, such as the Go module, lack."""
    return cell if cell.event_id else replace(cell, event_id=new_event_id())


@STEPS.states(2)
def rewrite(_: JobRecord, cell: Cell) -> Cell:
    """Keep the cell as it is. A store that rewrites it counts a blocked cell as not run instead of failed."""
    return cell
