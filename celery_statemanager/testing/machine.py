"""A hypothesis state machine that calls a store as its users do, and compares it with ``JobModel`` after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from celery_statemanager.errors import JobExists, JobNotFound, StateManagerError
from celery_statemanager.models import Scope
from celery_statemanager.records import Begin, Delivery, Write, new_event_id, new_job
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.agreement import check_agreement
from celery_statemanager.testing.drawn import PLANS, ROWS, deliveries, messages, owners, places, scopes, ways, writes
from celery_statemanager.testing.kit import Grid, every_job
from celery_statemanager.testing.model import JobModel, Place, short_repr
from celery_statemanager.testing.reader import Reader

LATEST = 1_000
"""A schema that is later than every real one."""


class StoreMachine(RuleBasedStateMachine):
    """The state machine; create it with ``store_machine``."""

    make_store: ClassVar[Any]
    recount_every: ClassVar[int]
    counts: ClassVar[Counter[str]]

    jobs: Bundle[JobModel] = Bundle("jobs")
    gone: Bundle[JobModel] = Bundle("gone")
    readers: Bundle[Reader] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.kept: dict[str, JobModel] = {}
        self.open: list[Reader] = []
        self.touched: set[str] = set()
        self.steps = 0
        self.counts["examples"] += 1

    def teardown(self) -> None:
        """Read all subscriptions to their end, delete the remaining jobs, and check that the store is empty."""
        self.recount()
        for reader in self.open:
            reader.drain()
            reader.events.close()
        for model in self.kept.values():
            Grid(self.store, model.ref).delete()
        assert list(every_job(self.store)) == []
        assert list(self.store.list_open_attempts()) == []
        self.store.close()

    @initialize(target=jobs, plan=st.sampled_from(PLANS))
    def first(self, plan: Any) -> Any:
        """Create the first job."""
        return self.create("job 0", plan)

    @rule(target=jobs, name=st.sampled_from(("job 0", "job 1")), plan=st.sampled_from(PLANS))
    def create_or_recreate(self, name: str, plan: Any) -> Any:
        """Create a job, unless one of this name exists."""
        return self.create(name, plan)

    @rule(
        model=jobs,
        place=places,
        fields=writes,
        fence=st.sampled_from((None, None, 0, 0, 0, 1)),
        repeats=st.sampled_from((True, False, False, False)),
        ends_attempt=st.booleans(),
        retry=st.none() | deliveries,
    )
    def write(
        self,
        model: JobModel,
        place: Place,
        fields: dict[str, Any],
        fence: int | None,
        repeats: bool,
        ends_attempt: bool,
        retry: Delivery | None,
    ) -> None:
        """Write a cell in one of the possible ways."""
        cell = model.cell(place)
        event_id = cell.event_id if repeats and cell.version else new_event_id()
        attempt = None if fence is None else cell.attempt - fence
        retry = retry if ends_attempt else None
        self.send(
            model, place, event_id=event_id, attempt=attempt, ends_attempt=ends_attempt, next_delivery=retry, **fields
        )

    @rule(
        model=jobs, place=places, fields=writes, delivery=deliveries, way=ways, owner=owners, ends_attempt=st.booleans()
    )
    def begin_late(
        self,
        model: JobModel,
        place: Place,
        fields: dict[str, Any],
        delivery: Delivery,
        way: dict[str, Any],
        owner: str | None,
        ends_attempt: bool,
    ) -> None:
        """Begin and write in one step."""
        begin = Begin(tag=place[0], task_index=place[1], event_id=new_event_id(), delivery=delivery, owner=owner, **way)
        self.send(model, place, event_id=new_event_id(), begin=begin, ends_attempt=ends_attempt, **fields)

    @rule(model=jobs, place=places, delivery=deliveries, way=ways, owner=owners, message=messages)
    def begin(
        self,
        model: JobModel,
        place: Place,
        delivery: Delivery,
        way: dict[str, Any],
        owner: str | None,
        message: str | None,
    ) -> None:
        """Request an attempt."""
        tag, row = place
        request = Begin(
            tag=tag, task_index=row, event_id=new_event_id(), delivery=delivery, owner=owner, message=message, **way
        )
        before = set(model.fallen)
        reply = self.store.begin(model.ref, replace(request))
        assert reply.verdict is model.begin(request)
        assert set(reply.decided) == model.fallen - before
        assert short_repr(reply.cell) == short_repr(model.cell(place))
        self.touched.add(model.job.job_id)

    @rule(model=jobs, reason=messages)
    def cancel(self, model: JobModel, reason: str | None) -> None:
        """Cancel a job, unless it is cancelled."""
        if not model.cancelled:
            before = set(model.fallen)
            model.cancel(reason)
            assert set(Grid(self.store, model.ref).cancel(reason)) == model.fallen - before
        self.touched.add(model.job.job_id)

    @rule(model=jobs)
    def migrate(self, model: JobModel) -> None:
        """Migrate every cell to the next layout without changing its content."""
        found = list(self.store.outdated_cells(model.ref, LATEST))
        later = [replace(each, cell=replace(each.cell, schema_version=each.cell.schema_version + 1)) for each in found]
        assert self.store.rewrite_cells(model.ref, later) == len(model.cells)
        model.migrate()
        self.touched.add(model.job.job_id)

    @rule(model=jobs)
    def tombstone(self, model: JobModel) -> None:
        """Mark a job deleted; nothing else changes."""
        Grid(self.store, model.ref).tombstone()
        model.tombstoned = True
        self.touched.add(model.job.job_id)

    @rule(target=gone, model=consumes(jobs), purging=st.booleans())
    def delete(self, model: JobModel, purging: bool) -> JobModel:
        """Delete a job; its subscriptions end."""
        assert self.store.delete_job(self.store.get_job(model.ref.key))
        del self.kept[model.job.job_id]
        self.touched.discard(model.job.job_id)
        for reader in [reader for reader in self.open if reader.model is model]:
            self.open.remove(reader)
            reader.end()
        if purging:
            self.store.purge(2)
        return model

    @rule(model=gone, place=places)
    def straggle(self, model: JobModel, place: Place) -> None:
        """Call a method on a deleted job."""
        grid = Grid(self.store, model.ref)
        uses: tuple[Callable[[], object], ...] = (
            lambda: grid.write(*place, 5),
            lambda: grid.begin(*place, takes_over=True),
            lambda: grid.state(*place),
            lambda: grid.lowest(),
            lambda: grid.states(),
            lambda: self.store.column_summaries(model.ref),
            lambda: self.store.watch(model.ref, Scope()),
            lambda: self.store.update_job(model.job),
            lambda: self.store.delete_job(model.job),
        )
        for use in uses:
            with pytest.raises(JobNotFound):
                use()

    @rule(target=readers, model=jobs, scope=scopes)
    def subscribe(self, model: JobModel, scope: Scope) -> Reader:
        """Open another subscription."""
        reader = Reader(model, scope, Subscription(self.store, model.ref, scope))
        self.open.append(reader)
        return reader

    @rule(reader=readers)
    def read_one(self, reader: Reader) -> None:
        """Read one event of a subscription, if there is one."""
        event = reader.events.get(0.0)
        if event is not None:
            reader.take(event)

    @rule(reader=readers)
    def read_all(self, reader: Reader) -> None:
        """Read all pending events of a subscription."""
        if reader in self.open:
            reader.drain()

    @rule(reader=consumes(readers))
    def unsubscribe(self, reader: Reader) -> None:
        """Close a subscription."""
        reader.events.close()
        assert reader.events.get(0.0) is None
        self.open = [each for each in self.open if each is not reader]

    @invariant()
    def agree(self) -> None:
        """Compare everything that can be read of the changed jobs with the model."""
        self.counts["steps"] += 1
        self.steps += 1
        if self.steps % self.recount_every == 0:
            self.recount()

    def recount(self) -> None:
        while self.touched:
            model = self.kept[self.touched.pop()]
            check_agreement(self.store, model)

    def create(self, name: str, plan: Any) -> Any:
        try:
            made = self.store.create_job(new_job(name, ROWS, plan))
        except JobExists:
            assert name in self.kept
            return multiple()
        assert name not in self.kept
        self.kept[name] = JobModel(made)
        self.touched.add(name)
        return self.kept[name]

    def send(self, model: JobModel, place: Place, **fields: Any) -> None:
        request = Write(tag=place[0], task_index=place[1], **fields)
        before = set(model.fallen)
        expected = model.write(request)
        try:
            reply = self.store.write(model.ref, replace(request))
        except StateManagerError as error:
            assert type(error).__name__ == expected
        else:
            assert expected == ("written" if reply.changed else "same")
            assert set(reply.decided) == model.fallen - before
            assert short_repr(reply.cell) == short_repr(model.cell(place))
        self.touched.add(model.job.job_id)


def machine_for(make_store: Callable[[], FullStore], recount_every: int) -> type[StoreMachine]:
    """Return a separate class of state machine for a store, with its own counts."""
    fields = {"make_store": staticmethod(make_store), "recount_every": recount_every, "counts": Counter()}
    return type("StoreMachine", (StoreMachine,), fields)
