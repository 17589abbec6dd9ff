"""The decisions of a job, their names, and the cells in which their callbacks run. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from celery_statemanager.records.outbox import Place

CALLBACK_ROW = -1
"""The row of a job's callback runs, one tag per latch. Readers of the grid do not see it."""


@dataclass(frozen=True, slots=True)
class Latch:
    """One of the three decisions that a job makes once in each generation, and its callback.

    Attributes:
        callback: a task signature as JSON text; None if only the decision is recorded.
        decided_at: the time of the decision; None before it.
        published_at: the time from which the callback's message is known to be sent; None before it.
        place: where the published message waits, until the callback has ended; None if only the broker knows. That of
            a stage of a body is never None, because sweeps must see its end; its queue is empty if it is not known.
        is_body: whether the callback is a stage of the job's body: it takes results instead of the job_id.
    """

    callback: str | None = None
    decided_at: int | None = None
    published_at: int | None = None
    place: Place | None = None
    is_body: bool = False

    @property
    def due(self) -> bool:
        """Whether the callback must still be published."""
        return self.callback is not None and self.decided_at is not None and self.published_at is None


LATCHES = ("success", "failure", "settled")
"""The names of the latches. Those of earlier generations have the number as a suffix: ``failure.1``."""

ERRBACKS = "errbacks"
"""The latch for the errbacks of a body. It is decided with ``failure``, or when a stage of the body cannot run."""


def body_stage(number: int) -> str:
    """Return the name of the latch of a stage of a body, counted from 1. That of a later one follows the one before."""
    return LATCHES[0] if number == 1 else f"{_LATER_STAGE}{number}"


_LATER_STAGE = "body-"


def is_latch(name: str) -> bool:
    """Return whether this release has latches of this name."""
    base, _ = split_latch(name)
    return base in {*LATCHES, ERRBACKS} or base.startswith(_LATER_STAGE)


def split_latch(name: str, default: int = 0) -> tuple[str, int]:
    """Return the name of a latch without its generation, and the generation; the default if the name has none."""
    base, _, generation = name.partition(".")
    return base, int(generation or default)


def of_generation(name: str, generation: int, unnamed: int = 0) -> str:
    """Return a name with the number of a generation, which is left out for one of them."""
    return name if generation == unnamed else f"{name}.{generation}"


def value_row(tag: str, task_index: int) -> int:
    """Return the row under which a store keeps the value of a cell.

    The stages of a body share one row in each generation, from ``CALLBACK_ROW`` downwards.
    """
    return -split_latch(tag, 1)[1] if task_index == CALLBACK_ROW else task_index
