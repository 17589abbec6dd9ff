"""Jobs without their cells. Pure values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import takewhile
from typing import NamedTuple
from uuid import UUID

from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import check_id, check_num_tasks
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.plan import Plan, PlanSpec
from celery_statemanager.records.latches import ERRBACKS, LATCHES, Latch, body_stage, of_generation, split_latch
from celery_statemanager.records.outbox import Flow
from celery_statemanager.records.policy import Policy


def to_datetime(microseconds: int) -> datetime:
    """Return a time as an aware UTC datetime, exact to the microsecond until the year 2242."""
    return datetime.fromtimestamp(microseconds / 1_000_000, timezone.utc)


class JobKey(NamedTuple):
    """The pair under which a job is stored."""

    job_id: str
    run_token: str | None = None


def job_key(job_id: str | UUID, run_token: str | UUID | None = None) -> JobKey:
    """Return the key of a job. Raises: TypeError, ValueError."""
    return JobKey(check_id("job_id", job_id), None if run_token is None else check_id("run_token", run_token))


class JobRef(NamedTuple):
    """One incarnation of a job. Writes name it, so a late write never changes a later job of the same name."""

    key: JobKey
    incarnation: str


EVERY_ROW, SOME_ROWS = "every", "some"
"""``JobRecord.results`` if every row keeps its result, or only those whose last task asks for it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The submission of a job, or one rerun of its rows.

    Attributes:
        number: from 1.
        earlier_failures: ``Tally.failures`` before it began. Only later ones count for its ``failure`` latch.
        rows_to_reset: the rows that the rerun has chosen, until all of them are reset; then empty.
        earlier_failed_rows: the number of rows that had failed before it began, without those that it runs again. One
            that succeeds although it was marked as LOST stays in this number.
    """

    number: int = 1
    earlier_failures: int = 0
    rows_to_reset: IndexSet = IndexSet()
    earlier_failed_rows: int = 0


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The reason and the time of a job's cancellation."""

    reason: str | None
    at: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job without its cells.

    ``num_tasks``, ``plan``, ``results``, ``incarnation`` and ``created_at`` never change; ``last_activity`` is the
    store's (exact, or at most a minute old); everything else changes by compare-and-set on ``revision``.

    Attributes:
        metadata: a JSON object as text, or None.
        results: which rows keep their results: ``EVERY_ROW``, ``SOME_ROWS`` or none.
    """

    job_id: str
    run_token: str | None
    incarnation: str
    num_tasks: int
    plan: Plan | None = None
    metadata: str | None = None
    results: str | None = None
    latches: Mapping[str, Latch] = field(default_factory=lambda: dict.fromkeys(LATCHES, Latch()))
    cancelled: Cancellation | None = None
    flow: Flow | None = None
    generation: Generation = Generation()
    policy: Policy = Policy()
    tombstoned_at: int | None = None
    created_at: int = 0
    last_activity: int = 0
    revision: int = 0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Decide the errbacks together with the failure."""
        errbacks, failed_at = self.latches.get(ERRBACKS), self.latches["failure"].decided_at
        if errbacks is not None and errbacks.decided_at is None and failed_at is not None:
            decided = {**self.latches, ERRBACKS: replace(errbacks, decided_at=failed_at)}
            object.__setattr__(self, "latches", decided)

    @property
    def key(self) -> JobKey:
        """The pair under which the job is stored."""
        return JobKey(self.job_id, self.run_token)

    @property
    def ref(self) -> JobRef:
        """The reference to this incarnation of the job."""
        return JobRef(self.key, self.incarnation)

    @property
    def schema(self) -> int:
        """The schema of its states; 0 for a job of another program until it is migrated."""
        return self.schema_version if self.incarnation else 0

    @property
    def settled(self) -> bool:
        """Whether the latch ``settled`` is decided: the job is closed. Never true without a plan."""
        return self.latches["settled"].decided_at is not None

    @property
    def is_stopped(self) -> bool:
        """Whether its policy has cancelled it because too many rows have failed."""
        if self.policy.max_failed is None or self.cancelled is None:
            return False
        return self.cancelled.at == self.latches["failure"].decided_at

    def has_expired(self, now: int) -> bool:
        """Whether its deadline has passed and it must be cancelled."""
        return self.policy.has_expired(now) and self.cancelled is None and not self.settled

    @property
    def due(self) -> bool:
        """Whether sweeps must check it: it owns messages and has not settled, or a callback is due or may be lost."""
        return self.publishes or any(latch.due or latch.place is not None for latch in self.latches.values())

    def body(self, generation: int = 0) -> list[str]:
        """Return the names of the latches of the stages of its body in order; an empty list without a body.

        Args:
            generation: 0 for the current one.
        """
        earlier = 0 if generation == self.generation.number else generation
        names = (of_generation(body_stage(number), earlier) for number in range(1, len(self.latches)))
        return [*takewhile(lambda name: name in self.latches and self.latches[name].is_body, names)]

    def label(self, latch: str) -> str:
        """Return the name under which people see the callback of a latch: ``on_failure``, ``body 2 of 3``."""
        base, _ = split_latch(latch)
        if base == ERRBACKS or not self.latches[latch].is_body:
            return base if base == ERRBACKS else f"on_{base}"
        stages = self.body()
        return "body" if len(stages) == 1 else f"body {stages.index(base) + 1} of {len(stages)}"

    @property
    def publishes(self) -> bool:
        """Whether its messages may still have to be published."""
        return self.flow is not None and not self.settled

    @property
    def max_in_flight(self) -> int | None:
        """The maximum number of rows that are published and have not ended; None for no limit."""
        return None if self.flow is None else self.flow.max_in_flight

    @property
    def has_window(self) -> bool:
        """Whether the number of its rows in flight is limited."""
        return self.max_in_flight is not None

    def with_changes_of(self, other: JobRecord) -> JobRecord:
        """Return the record with the changeable fields of another one; see ``Store.update_job``."""
        return replace(
            self,
            metadata=other.metadata,
            latches=dict(other.latches),
            cancelled=other.cancelled,
            flow=other.flow,
            generation=other.generation,
            policy=other.policy,
            tombstoned_at=other.tombstoned_at,
            schema_version=other.schema_version,
        )

    def with_latches(self, **latches: Latch) -> JobRecord:
        """Return the record with some latches replaced."""
        return replace(self, latches={**self.latches, **latches})

    def with_decided(self, names: Iterable[str], now: int) -> JobRecord:
        """Return the record with some latches decided."""
        return self.with_latches(**{name: replace(self.latches[name], decided_at=now) for name in names})

    def callback_tag(self, latch: str) -> str:
        """Return the tag of the cell in which the callback of a latch runs.

        In generation 3 these are ``failure.3`` for ``failure``, ``failure.2`` for ``failure.2``, and ``failure`` for
        ``failure.1``.
        """
        return of_generation(*split_latch(latch, self.generation.number), 1)

    def latch_of(self, tag: str) -> str:
        """Return the name of the latch whose callback runs in the cell with a tag, as in ``callback_tag``."""
        return of_generation(*split_latch(tag, 1), self.generation.number)

    def with_generation(self, rows: IndexSet, failures: int, failed_rows: int = 0) -> JobRecord:
        """Return the record with a new generation in which some rows run again; it is no longer cancelled.

        Decided latches with a callback are kept under the number of their generation, and with a body that has begun
        all of its latches.

        Args:
            failures: the current ``Tally.failures``.
            failed_rows: the number of other rows that have failed.
        """
        earlier, number = self.generation.number, self.generation.number + 1
        kept = {
            of_generation(*split_latch(name, earlier), number): latch
            for name, latch in self.latches.items()
            if latch.callback is not None and (latch.decided_at is not None or self._may_follow(name))
        }
        fresh = {
            name: Latch(latch.callback, is_body=latch.is_body)
            for name, latch in self.latches.items()
            if not split_latch(name)[1]
        }
        generation = Generation(number, failures, rows, failed_rows)
        return replace(self, latches={**fresh, **kept}, cancelled=None, generation=generation)

    def _may_follow(self, name: str) -> bool:
        """Return whether an undecided latch belongs to a body of which an earlier stage is decided."""
        base, generation = split_latch(name)
        if not (base == ERRBACKS or self.latches[name].is_body):
            return False
        first = self.latches.get(of_generation(body_stage(1), generation), Latch())
        return first.is_body and first.decided_at is not None


def new_job(
    job_id: str | UUID, num_tasks: int, tags: PlanSpec | None = None, run_token: str | UUID | None = None
) -> JobRecord:
    """Create the record of a job from valid arguments, without storing it. Raises: TypeError, ValueError."""
    key = job_key(job_id, run_token)
    rows = check_num_tasks(num_tasks)
    plan = None if tags is None else Plan.from_spec(rows, tags)
    return JobRecord(*key, new_incarnation(), rows, plan)


def new_incarnation() -> str:
    """Create the identifier that distinguishes a job from all others of the same name."""
    return os.urandom(8).hex()


class Listed(NamedTuple):
    """A job in a list, and the cursor with which the list continues after it."""

    job: JobRecord
    cursor: str


@dataclass(slots=True)
class Page:
    """Some jobs, and the position of the next page; ``cursor`` is None at the end."""

    jobs: list[JobRecord]
    cursor: str | None
