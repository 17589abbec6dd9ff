"""The members of a job: read, checked, split into stages, and kept until they are published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature, group, maybe_signature

from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.binding import TAG_HEADER
from celery_statemanager.integration.submission.calls import check_call
from celery_statemanager.limits import MAX_TASKS, check_name
from celery_statemanager.plan import Plan, PlanSpec

DEFAULT_TAG = "default"


Stages = list[Signature[Any]]
"""The stages of one member, in the order in which they run."""


def read(app: Celery, tasks: Iterable[Any], *, may_be_empty: bool = False) -> Iterator[Stages]:
    """Return the members, checked. Those of a list are all checked at once, others one by one.

    The signatures are those of the user, and must not be changed; see ``copied``.

    Args:
        may_be_empty: whether a list without members is accepted.

    Raises: TypeError, ValueError – naming the member; ConfigurationError – naming a task.
    """
    tasks = as_signature(app, tasks)
    if isinstance(tasks, group):
        options = {name: value for name, value in tasks.options.items() if name not in GROUP_IDS}
        tasks = [with_options(each, options) for each in tasks.tasks] if options else tasks.tasks
    if isinstance(tasks, (str, bytes, dict, Task)) or not isinstance(tasks, Iterable):
        raise TypeError(f"submit takes a list, generator or group of signatures, not {tasks!r:.80}{_hint(tasks)}")
    found = _checked(app, tasks)
    if not isinstance(tasks, (list, tuple)):
        return found
    checked = [*found]
    PlanBuilder.of(tags_of(app, stages) for stages in checked).plan(may_be_empty=may_be_empty)
    return iter(checked)


def _checked(app: Celery, tasks: Iterable[Any]) -> Iterator[Stages]:
    for row, member in enumerate(tasks):
        if row >= MAX_TASKS:
            raise ValueError(f"a job has at most {MAX_TASKS} members: split the tasks into several jobs")
        stages = _stages(row, as_signature(app, member))
        for number, stage in enumerate(stages):
            previous_result = (None,) if number else ()
            check_call(app, f"member {row}", stage, *previous_result)
        yield stages


def copied(app: Celery, stages: Stages) -> Stages:
    """Return copies of the stages of a member, bound to the app, which the caller may change."""
    copies: list[Any] = [maybe_signature(stage, app=app, clone=True) for stage in stages]
    return copies


def _hint(tasks: Any) -> str:
    """Return the part of an error message that shows how to write a single task as a list."""
    if isinstance(tasks, Task):
        return f": write [{tasks.__name__}.s(…)]"
    if is_chunks(tasks):
        return f": write {_chunks_as_group(tasks)}"
    return f": write [{tasks!r:.80}]" if isinstance(tasks, Signature) else ""


def is_chunks(value: Any) -> bool:
    """Return whether a value is a signature made by ``task.chunks()``; decoded from JSON it has no class of its own."""
    return isinstance(value, Signature) and value.get("task") == "celery.chunks"


def _chunks_as_group(chunks: Any) -> str:
    """Return the code that creates a group instead of chunks."""
    task = chunks.kwargs["task"]
    return f"{task['task'] if isinstance(task, Mapping) else task}.chunks(…).group()"


def tag_of(app: Celery, signature: Signature[Any]) -> str:
    """Return the tag under which a task signature runs."""
    tag = (signature["options"].get("headers") or {}).get(TAG_HEADER)
    if tag is None:
        tag = getattr(app.tasks.get(signature["task"] or ""), "tag", None)
    return DEFAULT_TAG if tag is None else check_name("tag", tag)


def tags_of(app: Celery, stages: Stages) -> tuple[str, ...]:
    """Return the tags of a member's stages."""
    return tuple(tag_of(app, stage) for stage in stages)


def plan_of_tags(derived: Plan, num_tasks: int, tags: PlanSpec | None) -> Plan:
    """Return the plan that ``tags`` describes; it must contain the derived plan and keeps the order of its stages.

    Raises: TypeError, ValueError.
    """
    if tags is None:
        return derived
    plan = Plan.from_spec(num_tasks, tags)
    for tag, rows in derived.columns.items():
        missing = rows.without(plan.columns.get(tag, IndexSet()))
        if missing:
            raise ValueError(f"tags leaves out {tag!r} for task {missing}, which has a stage with it: add it to tags")
    return plan.in_order_of(derived)


def _stages(row: int, member: Any) -> Stages:
    if isinstance(member, Task):
        raise TypeError(f"member {row} is the task {member.name}, not a signature: write {member.__name__}.s(…)")
    if not isinstance(member, Signature):
        raise TypeError(f"member {row} must be a task signature or a chain of them, not {member!r:.80}")
    if is_chunks(member):
        instead = _chunks_as_group(member)
        raise ValueError(f"member {row} is chunks, which stand for many tasks: write {instead} and submit its members")
    parts = list(flatten(member))
    if not parts:
        raise ValueError(f"member {row} is an empty chain: add a task to it, or leave the member out")
    for part in parts:
        if not isinstance(part, Signature) or part.subtask_type is not None or is_chunks(part):
            kind = getattr(part, "subtask_type", None) or type(part).__name__
            what = "chunks" if is_chunks(part) else f"a {kind}"
            raise ValueError(f"member {row} contains {what}: a member must be one task or a flat chain of tasks")
        if "task_id" in part.options:
            raise ValueError(f"member {row} ({part.task}) has its own task_id: leave it out, the job assigns the ids")
    return parts


class PlanBuilder:
    """The plan of the members read so far: the ranges of rows for each sequence of tags.

    Attributes:
        rows: the number of members.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._ranges: dict[tuple[str, ...], list[tuple[int, int]]] = {}

    @classmethod
    def of(cls, members: Iterable[tuple[str, ...]]) -> PlanBuilder:
        """Create the plan of members, each given by its tags. Raises: ValueError."""
        builder = cls()
        for row, tags in enumerate(members):
            builder.add(tags, row)
        return builder

    def add(self, tags: tuple[str, ...], row: int) -> None:
        """Add the next member by its tags. Raises: ValueError – it has a tag twice."""
        if len(set(tags)) < len(tags):
            repeated = next(tag for tag in tags if tags.count(tag) > 1)
            raise ValueError(
                f"member {row} has two stages with the tag {repeated!r}: set another tag on one of them with "
                f'states.tag(sig, "second"), or with tag= on its task'
            )
        self.rows = row + 1
        ranges = self._ranges.setdefault(tags, [])
        if ranges and ranges[-1][1] == row - 1:
            ranges[-1] = (ranges[-1][0], row)
        else:
            ranges.append((row, row))

    def plan(self, *, may_be_empty: bool = False) -> Plan:
        """Return the plan. Raises: ValueError – there is no member."""
        if not (self.rows or may_be_empty):
            raise ValueError("the list of tasks is empty: a job needs at least one member")
        return Plan(tuple((tags, IndexSet.from_ranges(ranges)) for tags, ranges in self._ranges.items()))


GROUP_IDS = frozenset({"task_id", "group_id"})
"""Options of a group that identify the group and are not passed to its members."""


def as_signature(app: Celery, value: Any) -> Any:
    """Return the signature that a mapping decoded from JSON describes, any other value unchanged."""
    if isinstance(value, Mapping) and not isinstance(value, Signature) and "task" in value:
        return Signature.from_dict(dict(value), app=app)
    return value


def flatten(member: Any) -> Iterator[Any]:
    """Yield the parts of a chain and of the chains in it, in order; yield any other value itself.

    The errbacks of a chain go to each task, its links to the last one, and its other options to the first one.
    """
    if not isinstance(member, Signature) or member.subtask_type != "chain":
        yield member
        return
    whole: Any = member
    linked = {"link", "link_error"} & whole.options.keys()
    tasks = whole.unchain_tasks() if linked else whole.tasks
    first = {name: value for name, value in whole.options.items() if name not in linked}
    for part in (part for task in tasks for part in flatten(task)):
        yield with_options(part, first) if first else part
        first = {}


def with_options(signature: Any, options: Mapping[str, Any]) -> Any:
    """Return a copy of a signature with further options; headers are merged with its own."""
    if not isinstance(signature, Signature):
        return signature
    headers = {**(signature.options.get("headers") or {}), **(options.get("headers") or {})}
    return signature.clone().set(**{**options, "headers": headers} if headers else options)
