"""What may be submitted: members are checked, flattened and kept until they are published."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from json import JSONDecoder
from typing import Any, Protocol

from celery import Celery, Task
from celery.canvas import Signature, group, maybe_signature
from kombu.utils.json import JSONEncoder, object_hook

from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration import redelivery
from celery_statemanager.integration.binding import TAG_HEADER
from celery_statemanager.limits import MAX_TASKS, check_name
from celery_statemanager.plan import Plan, PlanSpec

DEFAULT_TAG = "default"

Stages = list[Signature[Any]]


class Members(Protocol):
    """The members of a job, each the list of its stages, readable again and again."""

    def __iter__(self) -> Iterator[Stages]:
        """Give copies of the members in row order, with the app, which a signature by name lacks."""


def read(app: Celery, tasks: Iterable[Any]) -> tuple[Members, Plan, int]:
    """Read and check all members once; give them, the plan they make, and their number.

    A list stays where it is; anything that can be read only once goes to a temporary file, so that memory
    stays flat. Raises: TypeError, ValueError – naming the member; ConfigurationError – naming a task.
    """
    tasks = as_signature(app, tasks)
    if isinstance(tasks, group):
        tasks = members_of(tasks)
    if isinstance(tasks, (str, bytes, dict, Task)) or not isinstance(tasks, Iterable):
        raise TypeError(f"submit takes a list, generator or group of signatures, not {tasks!r:.80}{_mend(tasks)}")
    kept: _Listed | _Spooled = _Listed(app) if isinstance(tasks, (list, tuple)) else _Spooled(app)
    shapes = _Shapes()
    for row, member in enumerate(tasks):
        if row >= MAX_TASKS:
            raise ValueError(f"a job has at most {MAX_TASKS} members")
        stages = _stages(row, as_signature(app, member))
        for number, stage in enumerate(stages):
            result_of_the_last = (None,) if number else ()
            check_call(app, f"member {row}", stage, *result_of_the_last)
        shapes.add(tuple(tag_of(app, stage) for stage in stages), row)
        kept.add(row, stages)
    if not shapes.rows:
        raise ValueError("a job needs at least one member: the list of tasks is empty")
    return kept, shapes.plan(), shapes.rows


def _mend(tasks: Any) -> str:
    """Give the end of a sentence about one member that should stand in a list."""
    if isinstance(tasks, Task):
        return f": write [{tasks.__name__}.s(…)]"
    if is_chunks(tasks):
        return f": write {_chunks_as_group(tasks)}"
    return f": write [{tasks!r:.80}]" if isinstance(tasks, Signature) else ""


def is_chunks(value: Any) -> bool:
    """Whether a value is the signature that ``task.chunks()`` makes; read from JSON, it has no class of its own."""
    return isinstance(value, Signature) and value.task == "celery.chunks"


def _chunks_as_group(made: Any) -> str:
    """Return how to write chunks as a group of tasks."""
    task = made.kwargs["task"]
    return f"{task['task'] if isinstance(task, Mapping) else task}.chunks(…).group()"


def tag_of(app: Celery, signature: Signature[Any]) -> str:
    """Give the tag under which a task signature runs."""
    given = (signature.options.get("headers") or {}).get(TAG_HEADER)
    if given is None:
        given = getattr(app.tasks.get(signature.task or ""), "tag", None)
    return DEFAULT_TAG if given is None else check_name("tag", given)


def widened(derived: Plan, num_tasks: int, tags: PlanSpec | None) -> Plan:
    """Give the plan of ``tags``, which must contain the derived one and keeps the order in which its stages run.

    Raises: TypeError, ValueError.
    """
    if tags is None:
        return derived
    plan = Plan.from_spec(num_tasks, tags)
    for tag, rows in derived.columns.items():
        missing = rows.without(plan.columns.get(tag, IndexSet()))
        if missing:
            raise ValueError(f"tags leaves out {tag!r} for task {missing}, whose member runs under it: add it to tags")
    return plan.in_order_of(derived)


def _stages(row: int, member: Any) -> Stages:
    if isinstance(member, Task):
        raise TypeError(f"member {row} is the task {member.name}, not a call of it: write {member.__name__}.s(…)")
    if not isinstance(member, Signature):
        raise TypeError(f"member {row} is a task signature or a chain of them, not {member!r:.80}")
    if is_chunks(member):
        raise ValueError(
            f"member {row} is chunks, which are many tasks: write {_chunks_as_group(member)} and submit its members"
        )
    parts = list(parts_of(member))
    if not parts:
        raise ValueError(f"member {row} is an empty chain")
    for part in parts:
        if is_chunks(part):
            raise ValueError(f"member {row} holds chunks in a chain, but a member is one task or a flat chain of tasks")
        if not isinstance(part, Signature) or part.subtask_type is not None:
            kind = getattr(part, "subtask_type", None) or type(part).__name__
            raise ValueError(f"member {row} holds a {kind}, but a member is one task or a flat chain of tasks")
        if "task_id" in part.options:
            raise ValueError(f"member {row} ({part.task}) has a task_id of its own: leave it out, the job gives ids")
    return parts


def check_call(app: Celery, what: str, signature: Signature[Any], *prepended: Any) -> None:
    """Check a call as Celery does when it publishes it; the task of another app cannot be checked.

    Args:
        what: the name of the call for the error.
        prepended: the arguments that a signature gets in front of its own, unless it is immutable.

    Raises: TypeError – the task does not take the arguments; ConfigurationError – it has a policy that does not exist.
    """
    task = app.tasks.get(signature.task or "")
    redelivery.check_task(task)
    check = getattr(task, "__header__", None) if getattr(task, "typing", False) else None
    if check is None:
        return
    try:
        check(*(() if signature.immutable else prepended), *(signature.args or ()), **(signature.kwargs or {}))
    except TypeError as error:
        raise TypeError(f"{what}, task {signature.task}: {error}") from None


class _Shapes:
    """The plan of the members read so far; one entry for each run of rows with the same stages."""

    def __init__(self) -> None:
        self.rows = 0
        self._ranges: dict[tuple[str, ...], list[tuple[int, int]]] = {}

    def add(self, stages: tuple[str, ...], row: int) -> None:
        if len(set(stages)) < len(stages):
            twice = next(tag for tag in stages if stages.count(tag) > 1)
            raise ValueError(
                f"member {row} runs twice under the tag {twice!r}: give one stage another, "
                f'states.tag(sig, "second"), or set tag= on its task'
            )
        self.rows = row + 1
        ranges = self._ranges.setdefault(stages, [])
        if ranges and ranges[-1][1] == row - 1:
            ranges[-1] = (ranges[-1][0], row)
        else:
            ranges.append((row, row))

    def plan(self) -> Plan:
        return Plan(tuple((stages, IndexSet.from_ranges(ranges)) for stages, ranges in self._ranges.items()))


class _Listed:
    """Members that the caller holds in memory anyway."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._members: list[Stages] = []

    def add(self, row: int, stages: Stages) -> None:
        self._members.append(stages)

    def __iter__(self) -> Iterator[Stages]:
        for stages in self._members:
            copies: list[Any] = [maybe_signature(stage, app=self._app, clone=True) for stage in stages]
            yield copies


_spelled = JSONEncoder().encode
_read = JSONDecoder(object_hook=object_hook).decode
"""As kombu does it, who makes a new encoder and decoder for each text."""


class _Spooled:
    """Members of a generator, one JSON line each in a temporary file that goes with this object."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", prefix="celery-statemanager-")  # noqa: SIM115

    def add(self, row: int, stages: Stages) -> None:
        try:
            line = _spelled([dict(stage) for stage in stages])
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"member {row} of the generator cannot be spooled as JSON ({error}): give a list instead"
            ) from error
        self._file.write(line + "\n")

    def __iter__(self) -> Iterator[Stages]:
        self._file.flush()
        self._file.seek(0)
        for line in self._file:
            yield [Signature.from_dict(stage, app=self._app) for stage in _read(line)]

    def __del__(self) -> None:
        self._file.close()


_OF_ITS_OWN = frozenset({"task_id", "group_id"})
"""Options of a group that name the group."""


def as_signature(app: Celery, value: Any) -> Any:
    """Give a signature that came as JSON as what it was; anything else as it is."""
    if isinstance(value, Mapping) and not isinstance(value, Signature) and "task" in value:
        return Signature.from_dict(dict(value), app=app)
    return value


def members_of(made: group) -> Iterable[Any]:
    """Give the members of a group, each with the group's options."""
    options = {name: value for name, value in made.options.items() if name not in _OF_ITS_OWN}
    return [with_options(each, options) for each in made.tasks] if options else made.tasks


def parts_of(member: Any) -> Iterator[Any]:
    """Give what a chain, of chains perhaps, is made of, in order; anything else is one part.

    A chain's errbacks are every task's, its links are the last one's, and its other options the first one's.
    """
    if not isinstance(member, Signature) or member.subtask_type != "chain":
        yield member
        return
    made: Any = member
    linked = {"link", "link_error"} & made.options.keys()
    tasks = made.unchain_tasks() if linked else made.tasks
    first = {name: value for name, value in made.options.items() if name not in linked}
    for part in (part for task in tasks for part in parts_of(task)):
        yield with_options(part, first) if first else part
        first = {}


def with_options(signature: Any, options: Mapping[str, Any]) -> Any:
    """Give a copy of a signature with further options; headers are added to those it has."""
    if not isinstance(signature, Signature):
        return signature
    headers = {**(signature.options.get("headers") or {}), **(options.get("headers") or {})}
    return signature.clone().set(**{**options, "headers": headers} if headers else options)
