"""A hypothesis state machine that applies random operations to a store and compares it with ``ExpectedJob``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from celery_statemanager.errors import JobExists, JobNotFound, StateManagerError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope
from celery_statemanager.records import (
    Begin,
    ClaimRequest,
    Delivery,
    Flow,
    Policy,
    Reset,
    When,
    Write,
    WriteReply,
    new_event_id,
    new_job,
)
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.checks import CheckedSubscription, check_job
from celery_statemanager.testing.drawn import (
    FLOWS,
    PLANS,
    POLICIES,
    ROWS,
    begins,
    claims,
    deliveries,
    messages,
    places,
    scopes,
    writes,
)
from celery_statemanager.testing.expected_cells import comparable
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, every_job, newest_jobs
from celery_statemanager.testing.model import ExpectedJob, Place


class StoreMachine(RuleBasedStateMachine):
    """Random operations on a store. Use ``store_machine`` to create a subclass for a store."""

    make_store: ClassVar[Any]
    recount_every: ClassVar[int]
    counts: ClassVar[Counter[str]]

    jobs: Bundle[ExpectedJob] = Bundle("jobs")
    gone: Bundle[ExpectedJob] = Bundle("gone")
    readers: Bundle[CheckedSubscription] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.kept: dict[str, ExpectedJob] = {}
        self.open: list[CheckedSubscription] = []
        self.touched: set[str] = set()
        self.claimed: dict[str, set[int]] = {}
        """The rows that each write has claimed, by its event id."""
        self.steps = 0
        self.counts["examples"] += 1

    def teardown(self) -> None:
        """Drain all subscriptions, delete the remaining jobs and check that the store is empty."""
        self.recount()
        for reader in self.open:
            reader.drain()
            reader.events.close()
        for model in self.kept.values():
            Grid(self.store, model.ref).delete()
        assert list(every_job(self.store)) == []
        assert list(self.store.list_open_attempts()) == []
        self.store.close()

    @initialize(target=jobs, plan=st.sampled_from(PLANS), flow=st.sampled_from(FLOWS), policy=st.sampled_from(POLICIES))
    def first(self, plan: Any, flow: Flow | None, policy: Policy) -> Any:
        """Start with a job."""
        return self.create("job 0", plan, flow, policy)

    @rule(
        target=jobs,
        name=st.sampled_from(("job 0", "job 1")),
        plan=st.sampled_from(PLANS),
        flow=st.sampled_from(FLOWS),
        policy=st.sampled_from(POLICIES),
    )
    def create_or_recreate(self, name: str, plan: Any, flow: Flow | None, policy: Policy) -> Any:
        """Create a job, unless one of the name exists."""
        return self.create(name, plan, flow, policy)

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
        model: ExpectedJob,
        place: Place,
        fields: dict[str, Any],
        fence: int | None,
        repeats: bool,
        ends_attempt: bool,
        retry: Delivery | None,
    ) -> None:
        """Write a cell with any combination of fields."""
        cell = model.cell(place)
        event_id = cell.event_id if repeats and cell.version else new_event_id()
        attempt = None if fence is None else cell.attempt - fence
        retry = retry if ends_attempt else None
        self.send(
            model, place, event_id=event_id, attempt=attempt, ends_attempt=ends_attempt, next_delivery=retry, **fields
        )

    @rule(
        model=jobs,
        place=places,
        fields=writes,
        way=begins,
        ahead=st.sampled_from((None, None, None, -1, 0, 1, 2)),
        ends_attempt=st.booleans(),
    )
    def begin_late(
        self,
        model: ExpectedJob,
        place: Place,
        fields: dict[str, Any],
        way: dict[str, Any],
        ahead: int | None,
        ends_attempt: bool,
    ) -> None:
        """Begin and write in one step, also as an attempt that the store has forgotten."""
        begin = Begin(tag=place[0], task_index=place[1], **way)
        attempt = None if ahead is None else model.cell(place).attempt + ahead
        self.send(model, place, begin=begin, attempt=attempt, ends_attempt=ends_attempt, **fields)

    @rule(model=jobs, place=places, way=begins, message=messages)
    def begin(self, model: ExpectedJob, place: Place, way: dict[str, Any], message: str | None) -> None:
        """Begin an attempt."""
        request = Begin(tag=place[0], task_index=place[1], message=message, **way)
        before = set(model.decided)
        reply = self.store.begin(model.ref, replace(request))
        assert reply.verdict is model.begin(request)
        assert set(reply.decided) == model.decided - before
        assert comparable(reply.cell) == comparable(model.cell(place))
        self.touched.add(model.job.job_id)

    @rule(model=jobs, place=places, is_open=st.booleans(), counts=st.booleans(), fence=st.sampled_from((0, 0, 1)))
    def send_back(self, model: ExpectedJob, place: Place, is_open: bool, counts: bool, fence: int) -> None:
        """Make the message of a cell due again."""
        attempt = model.cell(place).attempt - fence
        back = Write.sent_back(*place, "sent again", attempt=attempt, is_open=is_open, counts_as_loss=counts)
        self.send_request(model, back)

    @rule(
        model=jobs,
        place=places,
        behind=st.sampled_from((0, 0, 0, 1)),
        fence=st.sampled_from((0, 0, 0, 1)),
        stands_in=st.sampled_from((None, "a.py:1 f", "b.py:2 g")),
    )
    def mark_stalled(self, model: ExpectedJob, place: Place, behind: int, fence: int, stands_in: str | None) -> None:
        """Mark an attempt as stalled, if it is that of a worker and has not moved."""
        cell = model.cell(place)
        version, attempt = cell.version - behind, cell.attempt - fence
        mark = Write.stalled(*place, attempt=attempt, if_version=version, since=7, stands_in=stands_in)
        self.send_request(model, mark)

    @rule(model=jobs, fields=claims)
    def claim(self, model: ExpectedJob, fields: dict[str, Any]) -> None:
        """Claim rows, also those of dead publishers."""
        request = ClaimRequest(**fields)
        found = self.store.claim(model.ref, request)
        assert (set(found.rows), set(found.again), found.left) == model.claim(request)
        self.touched.add(model.job.job_id)

    @rule(model=jobs, place=places, publisher=st.sampled_from(("p", "q")), succeeds=st.booleans())
    def run_row(self, model: ExpectedJob, place: Place, publisher: str, succeeds: bool) -> None:
        """Run a task, so that rows end more often than random writes end them."""
        self.begin(model, place, {}, None)
        status = FINISHED if succeeds else FAILED
        kind = {"ends_attempt": True, "block_later_stages": not succeeds, "publisher": publisher}
        self.send(model, place, status=status, attempt=model.cell(place).attempt, when=When.OPEN, **kind)

    @rule(model=jobs, rows=st.sampled_from((None, 1, 2, 3)))
    def change_window(self, model: ExpectedJob, rows: int | None) -> None:
        """Change the maximum number of rows in flight."""
        if model.job.flow is not None:
            flow = replace(model.job.flow, max_in_flight=rows)
            assert Grid(self.store, model.ref).update(lambda job: replace(job, flow=flow)) == ()
            model.set_window(rows)
            self.touched.add(model.job.job_id)

    @rule(model=jobs, paused=st.booleans())
    def pause(self, model: ExpectedJob, paused: bool) -> None:
        """Pause or resume a job."""
        if model.job.flow is not None:
            flow = replace(model.job.flow, paused=paused)
            assert Grid(self.store, model.ref).update(lambda job: replace(job, flow=flow)) == ()
            model.set_paused(paused)
            self.touched.add(model.job.job_id)

    @rule(model=jobs, reason=messages)
    def cancel(self, model: ExpectedJob, reason: str | None) -> None:
        """Cancel a job that is not cancelled."""
        if not model.cancelled:
            before = set(model.decided)
            model.cancel(reason)
            assert set(Grid(self.store, model.ref).cancel(reason)) == model.decided - before
        self.touched.add(model.job.job_id)

    @rule(model=jobs, place=places)
    def reset_row(self, model: ExpectedJob, place: Place) -> None:
        """Reset a row, in a new generation if none has begun."""
        if model.job.flow is None:
            return
        if not model.is_resetting:
            model.rerun(place[1])
            grid = Grid(self.store, model.ref)
            earlier = IndexSet([place[1]]), model.earlier_failures, model.earlier_failed_rows
            assert grid.update(lambda job: job.with_generation(*earlier)) == ()
        request = Reset(tag=place[0], task_index=place[1], generation=model.generation)
        assert self.store.reset_row(model.ref, request) == model.reset_row(place, request.event_id)
        self.touched.add(model.job.job_id)

    @rule(model=jobs)
    def end_reset(self, model: ExpectedJob) -> None:
        """Record that all rows of a generation are reset."""
        if model.is_resetting:
            before = set(model.decided)
            model.end_reset()
            grid, none = Grid(self.store, model.ref), IndexSet()
            decided = grid.update(lambda job: replace(job, generation=replace(job.generation, rows_to_reset=none)))
            assert set(decided) == model.decided - before
            self.touched.add(model.job.job_id)

    @rule(model=jobs)
    def migrate(self, model: ExpectedJob) -> None:
        """Rewrite every cell with the next schema."""
        found = list(self.store.outdated_cells(model.ref, 1_000))  # a version later than any
        later = [replace(each, cell=replace(each.cell, schema_version=each.cell.schema_version + 1)) for each in found]
        assert self.store.rewrite_cells(model.ref, later) == len(model.cells)
        model.migrate()
        self.touched.add(model.job.job_id)

    @rule(limit=st.sampled_from((1, 2, 3)))
    def list_newest(self, limit: int) -> None:
        """List all jobs by their creation."""
        assert [job.job_id for job in newest_jobs(self.store, limit)] == list(reversed(self.kept))

    @rule(model=jobs)
    def tombstone(self, model: ExpectedJob) -> None:
        """Tombstone a job."""
        Grid(self.store, model.ref).tombstone()
        model.tombstoned = True
        self.touched.add(model.job.job_id)

    @rule(target=gone, model=consumes(jobs), purging=st.booleans())
    def delete(self, model: ExpectedJob, purging: bool) -> ExpectedJob:
        """Delete a job and check that its subscriptions end."""
        assert self.store.delete_job(self.store.get_job(model.ref.key))
        del self.kept[model.job.job_id]
        self.touched.discard(model.job.job_id)
        for reader in [reader for reader in self.open if reader.expected is model]:
            self.open.remove(reader)
            reader.end()
        if purging:
            self.store.purge(2)
        return model

    @rule(model=gone, place=places)
    def straggle(self, model: ExpectedJob, place: Place) -> None:
        """Check that no operation finds a deleted job."""
        grid = Grid(self.store, model.ref)
        uses: tuple[Callable[[], object], ...] = (
            lambda: grid.write(*place, 5),
            lambda: grid.begin(*place, takes_over=True),
            lambda: grid.state(*place),
            lambda: grid.lowest(),
            lambda: grid.states(),
            lambda: self.store.column_summaries(model.ref),
            lambda: self.store.get_outbox(model.ref),
            lambda: self.store.list_values(model.ref, IndexSet([0])),
            lambda: self.store.claim(model.ref, ClaimRequest(publisher="p", limit=1)),
            lambda: self.store.watch(model.ref, Scope()),
            lambda: self.store.update_job(model.job),
            lambda: self.store.delete_job(model.job),
        )
        for use in uses:
            with pytest.raises(JobNotFound):
                use()

    @rule(target=readers, model=jobs, scope=scopes)
    def subscribe(self, model: ExpectedJob, scope: Scope) -> CheckedSubscription:
        """Open a subscription."""
        reader = CheckedSubscription(model, scope, Subscription(self.store, model.ref, scope))
        self.open.append(reader)
        return reader

    @rule(reader=readers)
    def read_one(self, reader: CheckedSubscription) -> None:
        """Read one event of a subscription, if there is one."""
        event = reader.events.get(0.0)
        if event is not None:
            reader.check(event)

    @rule(reader=readers)
    def read_all(self, reader: CheckedSubscription) -> None:
        """Read all current events of a subscription."""
        if reader in self.open:
            reader.drain()

    @rule(reader=readers)
    def continue_subscription(self, reader: CheckedSubscription) -> None:
        """Continue a subscription at the cursor of its last event."""
        if reader in self.open:
            reader.continue_after_last_event(self.store)

    @rule(reader=consumes(readers))
    def unsubscribe(self, reader: CheckedSubscription) -> None:
        """Close a subscription."""
        reader.events.close()
        assert reader.events.get(0.0) is None
        self.open = [each for each in self.open if each is not reader]

    @invariant()
    def agree(self) -> None:
        """Check the jobs that the last steps have changed."""
        self.counts["steps"] += 1
        self.steps += 1
        if self.steps % self.recount_every == 0:
            self.recount()

    def recount(self) -> None:
        while self.touched:
            check_job(self.store, self.kept[self.touched.pop()])

    def create(self, name: str, plan: Any, flow: Flow | None, policy: Policy) -> Any:
        job = replace(new_job(name, ROWS, plan), flow=flow, policy=policy)
        if flow is not None:
            self.store.add_block(job.ref, 0, b"messages", 60)
        try:
            made = self.store.create_job(job)
        except JobExists:
            assert name in self.kept
            self.store.drop_draft(job.ref)
            return multiple()
        assert name not in self.kept
        self.kept[name] = ExpectedJob(made)
        self.touched.add(name)
        return self.kept[name]

    def _check_claimed(self, model: ExpectedJob, request: Write, reply: WriteReply) -> None:
        """Compare the rows that a write claimed. A repeated one may return those of the first write again."""
        if reply.changed:
            expected = self.claimed[request.event_id] = model.claim_after(request)
            assert set(reply.claimed) == expected
        else:
            assert set(reply.claimed) <= self.claimed.get(request.event_id, set())

    def send(self, model: ExpectedJob, place: Place, **fields: Any) -> None:
        self.send_request(model, Write(tag=place[0], task_index=place[1], **fields))

    def send_request(self, model: ExpectedJob, request: Write) -> None:
        place = (request.tag, request.task_index)
        before = set(model.decided)
        expected = model.write(request) if request.stalled_since is None else model.mark(request)
        try:
            reply = self.store.write(model.ref, replace(request))
        except StateManagerError as error:
            assert type(error).__name__ == expected
        else:
            assert expected == ("written" if reply.changed else "same")
            self._check_claimed(model, request, reply)
            assert set(reply.decided) == model.decided - before
            assert comparable(reply.cell) == comparable(model.cell(place))
        self.touched.add(model.job.job_id)
