"""A chord that is submitted: its header becomes the members of a job, and its body the callback of success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery import Celery
from celery.canvas import Signature
from kombu.utils.functional import maybe_list
from kombu.utils.json import dumps

from celery_statemanager.integration.submission.latches import checked_latch
from celery_statemanager.integration.submission.members import (
    GROUP_IDS,
    as_signature,
    flatten,
    is_chunks,
    with_options,
)
from celery_statemanager.records import ERRBACKS, Latch, body_stage

_LINKS = ("link", "link_error")
_DELAYS = ("countdown", "eta")


class Chord(NamedTuple):
    """The parts of a chord.

    Attributes:
        header: what ``members.read`` takes.
        latches: those of the stages of the body, and of their errbacks.
        takes_results: whether the body takes the results of the header.
    """

    header: Any
    latches: Mapping[str, Latch]
    takes_results: bool


def is_chord(value: Any) -> bool:
    """Return whether a value is a chord."""
    return isinstance(value, Signature) and value.subtask_type == "chord"


def read_chord(app: Celery, chord: Any, on_success: Any) -> Chord:
    """Return the parts of a chord, as Celery combines its options with them. Raises: TypeError, ValueError."""
    body = as_signature(app, chord.kwargs.get("body"))
    if body is None:
        raise ValueError("the chord has no body: write submit(chord(header, body)), or submit only its header")
    if on_success is not None:
        raise ValueError(
            "on_success beside the body of a chord: the body is the on_success callback; leave one of them out, or use "
            "on_settled"
        )
    options = {name: value for name, value in chord.options.items() if name not in (*GROUP_IDS, *_LINKS)}
    header = _header(app, chord.kwargs["header"], options)
    arguments = tuple(chord.args), chord.kwargs.get("kwargs") or {}
    if any(arguments):
        header = [_with_arguments(as_signature(app, each), *arguments) for each in header]
    body = _body(chord, body, {name: value for name, value in options.items() if name not in _DELAYS})
    stages = _stages(app, body)
    latches = {body_stage(number): _latch_of(app, stages, number) for number in range(1, len(stages) + 1)}
    errbacks = [errback for stage in stages for errback in maybe_list(stage.options.get("link_error")) or []]
    if errbacks:
        of_header = maybe_list(body.options.get("link_error")) or []  # not those of a single task of a chain
        latches[ERRBACKS] = Latch(str(dumps({"task": errbacks[0]["task"], "errbacks": of_header})))
    return Chord(header, latches, not stages[0].immutable)


def _header(app: Celery, header: Any, options: Mapping[str, Any]) -> Any:
    """Return the tasks of a header with the options of the chord, as ``members.read`` takes them."""
    if getattr(header, "subtask_type", None) == "group":  # that of a chord that was frozen
        options = {**{name: value for name, value in header.options.items() if name not in GROUP_IDS}, **options}
        header = header.tasks
    return [with_options(as_signature(app, each), options) for each in header] if options else header


def _with_arguments(signature: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a copy of a task of a header that takes the arguments of the chord before its own, unless immutable."""
    if not isinstance(signature, Signature):
        return signature
    if signature.subtask_type != "chain":
        return signature.clone(args, kwargs)
    whole: Any = signature.clone()
    if whole.tasks:
        first, *others = whole.tasks
        whole.kwargs["tasks"] = [_with_arguments(first, args, kwargs), *others]
    return whole


def _body(chord: Any, body: Any, options: Mapping[str, Any]) -> Any:
    """Return a copy of a body with the options, links and errbacks of its chord. Raises: TypeError."""
    if not isinstance(body, Signature):
        raise TypeError(f"the body of the chord must be a task signature or a chain of them, not {body!r:.80}")
    linked: Any = with_options(body, options) if options else body.clone()
    for name in _LINKS:
        for link in maybe_list(chord.options.get(name)) or []:
            linked.append_to_list_option(name, link)
    return linked


def _stages(app: Celery, body: Any) -> list[Any]:
    """Return the tasks of a body. Raises: ValueError."""
    stages = [as_signature(app, each) for each in flatten(body)]
    if not stages:
        raise ValueError("the body of the chord is an empty chain: add a task to it")
    for stage in stages:
        if not isinstance(stage, Signature) or stage.subtask_type is not None or is_chunks(stage):
            kind = getattr(stage, "subtask_type", None) or getattr(stage, "task", type(stage).__name__)
            raise ValueError(
                f"the body of the chord contains a {kind}: it must be one task or a flat chain of tasks; submit a "
                "nested canvas as a job of its own, from a task in the body"
            )
    return stages


def _latch_of(app: Celery, stages: list[Any], number: int) -> Latch:
    """Return the latch of a stage of a body, counted from 1. Raises: TypeError, ValueError."""
    is_first, stage = number == 1, stages[number - 1]
    taken = "the list of results" if is_first else "the value of the task before"
    return checked_latch(app, "the body of the chord", stage, [] if is_first else None, taken, is_body=True)
