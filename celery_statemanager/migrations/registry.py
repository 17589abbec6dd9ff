"""Steps by their numbers: step 3 leads from schema 2 to schema 3, for states, for jobs, or for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.records import Cell, JobRecord, new_event_id

StateStep = Callable[[JobRecord, Cell], Cell]
"""Gives a cell in its number's layout; the job is as it was when its migration began."""
JobStep = Callable[[JobRecord], JobRecord]
"""Gives a job in its number's layout: latches, cancelled, submission and tombstoned_at may change."""

Step = TypeVar("Step", StateStep, JobStep)

_FIXED = ("status", "version", "timestamp", "attempt", "open", "owner")
"""What a state says to readers and writers; a step changes how the rest is kept."""


class Steps:
    """A schema's history. A step may be taken twice, by a run that goes on where another was cut off.

    ::

        @STEPS.states(2)
        def lower_case(job: JobRecord, cell: Cell) -> Cell:
            return replace(cell, message=cell.message and cell.message.lower())
    """

    def __init__(self) -> None:
        self._states: dict[int, StateStep] = {}
        self._jobs: dict[int, JobStep] = {}

    def states(self, number: int) -> Callable[[StateStep], StateStep]:
        """Register the step of a number for states. Raises: ValueError – the number is taken, or none."""
        return _registrar(self._states, number)

    def jobs(self, number: int) -> Callable[[JobStep], JobStep]:
        """Register the step of a number for jobs, taken after their states. Raises: ValueError."""
        return _registrar(self._jobs, number)

    @property
    def newest(self) -> int:
        """The schema that all steps together lead to."""
        return max((*self._states, *self._jobs), default=0)

    def checked(self, target: Any) -> int:
        """Accept a target that steps lead to from the first schema on. Raises: ConfigurationError."""
        if isinstance(target, bool) or not isinstance(target, int) or target < 1:
            raise ConfigurationError(f"the target is a schema's number, 1 … {self.newest}, not {target!r}")
        if target > self.newest:
            raise ConfigurationError(
                f"this release knows no schema {target}, its newest is {self.newest}: upgrade celery-statemanager here"
            )
        for number in range(1, target):
            if number not in self._states and number not in self._jobs:
                raise ConfigurationError(
                    f"no step leads to schema {number}, so schema {target} cannot be reached: register one, "
                    f"@STEPS.states({number}) or @STEPS.jobs({number})"
                )
        return target

    def state(self, job: JobRecord, cell: Cell, target: int) -> Cell:
        """Take a cell to a later schema. Raises: ValueError – a step changes what the state says."""
        new = cell
        for number in range(cell.schema_version + 1, target + 1):
            if number in self._states:
                new = self._states[number](job, new)
            bent = [name for name in _FIXED if getattr(new, name) != getattr(cell, name)]
            if bent:
                raise ValueError(f"step {number} changes a state's {', '.join(bent)}: that is for writers to do")
        return replace(new, schema_version=target)

    def job(self, job: JobRecord, target: int) -> JobRecord:
        """Take a job to a later schema."""
        new = job
        for number in range(job.schema + 1, target + 1):
            new = self._jobs[number](new) if number in self._jobs else new
        return replace(new, schema_version=target)


def _registrar(steps: dict[int, Step], number: int) -> Callable[[Step], Step]:
    if number < 1:
        raise ValueError(f"steps are numbered from 1, not {number}")
    if number in steps:
        raise ValueError(f"step {number} is {steps[number].__qualname__} already: take the next number")

    def register(step: Step) -> Step:
        steps[number] = step
        return step

    return register


STEPS = Steps()
"""They lead to ``models.SCHEMA_VERSION``, which new jobs and states have from the start."""


@STEPS.states(1)
def take_over(_: JobRecord, cell: Cell) -> Cell:
    """A state that another program wrote, such as the Go module: every state of ours has an event id.

    Its job was given an incarnation before, and with it the state is counted. No attempt was taken for it: 0 is right.
    """
    return cell if cell.event_id else replace(cell, event_id=new_event_id())
