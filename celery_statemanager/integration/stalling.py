"""The options ``stall_after`` and ``on_stall`` of tasks and jobs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.limits import short_repr

POLICIES = ("report", "stop")

StallOptions = tuple[float | None, str | None]
"""The options of a job, which its messages carry: ``stall_after`` and ``on_stall``, None where the job has none."""


class Limit(NamedTuple):
    """The effective options of one execution.

    Attributes:
        after: the seconds without a move after which it has stalled.
        stops: whether its next write then stops it.
    """

    after: float
    stops: bool


def check(stall_after: Any, on_stall: Any, progress_interval: float = 0.0) -> StallOptions | None:
    """Return valid options; None if neither is given.

    Args:
        progress_interval: the setting; a limit below twice this time would be passed by a task that reports progress.

    Raises: TypeError, ValueError.
    """
    if on_stall not in (None, *POLICIES):
        raise ValueError(f'on_stall must be "report" or "stop", not {short_repr(on_stall)}')
    if stall_after is None:
        return None if on_stall is None else (None, on_stall)
    if isinstance(stall_after, bool) or not isinstance(stall_after, (int, float)):
        raise TypeError(f"stall_after must be a number of seconds above 0, not {short_repr(stall_after)}")
    if not (math.isfinite(stall_after) and stall_after > 0):
        raise ValueError(f"stall_after must be a number of seconds above 0, not {stall_after}")
    if stall_after < 2 * progress_interval:
        raise ValueError(
            f"stall_after must be at least {2 * progress_interval:g} s, twice statemanager_progress_interval, not "
            f"{stall_after:g} s: a task that reports progress writes it once in this interval"
        )
    return float(stall_after), on_stall


def check_task(name: str, task: Any, progress_interval: float = 0.0) -> None:
    """Check the options of a task; None stands for a task unknown to the app. Raises: ConfigurationError."""
    try:
        _options_of(task, progress_interval)
    except (TypeError, ValueError) as error:
        hint = "correct it where the task is declared, or remove it"
        raise ConfigurationError(f"task {name!r}: {error}; {hint}") from None


def _options_of(task: Any, progress_interval: float) -> StallOptions | None:
    return check(getattr(task, "stall_after", None), getattr(task, "on_stall", None), progress_interval)


def limit_of(task: Any, of_job: StallOptions | None, progress_interval: float) -> Limit | None:
    """Return the limit of an execution: the options of its job win. Invalid options of the task have no effect."""
    after, on_stall = of_job or (None, None)
    try:
        own = _options_of(task, progress_interval)
    except (TypeError, ValueError):
        own = None
    own_after, own_policy = own or (None, None)
    after = own_after if after is None else after
    policy = own_policy if on_stall is None else on_stall
    return None if after is None else Limit(after, policy == "stop")
