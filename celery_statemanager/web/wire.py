"""The JSON of the web: that of the commands, with status names and percentages."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import Response

from celery_statemanager.codec import compact, state_from_wire, summary_to_wire
from celery_statemanager.inspection import JobView, overview_to_wire, view_to_wire
from celery_statemanager.models import State, Summary, status_name
from celery_statemanager.overview import Overview


class JSON(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """Return a value as compact JSON in UTF-8. Lone surrogates, which other programs may store, are escaped."""
    try:
        return compact(content).encode()
    except UnicodeEncodeError:
        return json.dumps(content, separators=(",", ":")).encode()


def percent_of(fraction: float | None) -> float | None:
    """Return a fraction as a percentage with one decimal, rounded down. Only 1.0 becomes 100; None stays None."""
    return None if fraction is None else math.floor(round(fraction * 1_000, 6)) / 10


def state_to_json(state: State) -> dict[str, Any]:
    """Return one cell as a JSON object."""
    return {
        **state.as_dict(),
        "taskIndex": state.task_index,
        "statusName": status_name(state.status),
        "percent": percent_of(state.fraction),
        "terminal": state.terminal,
    }


def overview_to_json(shown: Overview) -> dict[str, Any]:
    """Return a job and its counts as a JSON object."""
    return {**overview_to_wire(shown), "percent": percent_of(shown.summary.fraction)}


def summary_to_json(shown: Overview) -> dict[str, Any]:
    """Return a job and its counts by tag, in the order of the stages, as a JSON object."""
    return {**overview_to_json(shown), **_tags(shown)}


def view_to_json(view: JobView) -> dict[str, Any]:
    """Return everything about a job, except its cells, as a JSON object."""
    wire = view_to_wire(view)
    found = {name: value for name, value in wire.items() if name not in _OMITTED}
    for each in found["callbacks"].values():
        each["state"] = each["state"] and _named(each["state"])
    return {**found, "percent": percent_of(view.overview.summary.fraction), **_tags(view.overview)}


def _named(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a callback with its status name."""
    found = state_from_wire(state)
    return {**state, "statusName": status_name(found.status), "terminal": found.terminal}


_SETS = frozenset({"failedIDs", "runningIDs", "missingIDs", "notRunIDs", "stalledIDs"})
_OMITTED = _SETS | {"states", "statesHidden"}
"""Fields that other routes return in pages, because their size grows with the job."""


def _tags(shown: Overview) -> dict[str, Any]:
    """Return the counts by tag, and the order of the stages, because JavaScript sorts names that are numbers first."""
    return {"tags": {tag: _counts(each) for tag, each in shown.tags.items()}, "tagOrder": [*shown.tags]}


def _counts(summary: Summary) -> dict[str, Any]:
    wire = {name: value for name, value in summary_to_wire(summary).items() if name not in _SETS}
    return {**wire, "numTasks": summary.num_tasks, "percent": percent_of(summary.fraction)}
