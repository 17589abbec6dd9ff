"""A job in dicts with a second implementation of the rules of its steps, to check stores against."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from celery_statemanager.models import Status
from celery_statemanager.records import Begin, Cell, ClaimRequest, JobRecord, JobRef, Verdict, When, Write
from celery_statemanager.stores.steps import CLAIMS_AT_AN_END
from celery_statemanager.testing import naive
from celery_statemanager.testing.expected_cells import marked, message_of, reset, taken, waiting_again, written
from celery_statemanager.testing.kit import CANCELLED, FINISHED

Place = tuple[str, int]


@dataclass
class ExpectedJob:
    """The expected content of a job in a store.

    Attributes:
        history: every version of every cell; ``cells`` contains the newest versions.
        decided: the names of the decided latches.
        published: the number of rows that were claimed for publication.
        claims: the newest claim of each publisher.
        begun, waiting: the rows that were returned, those that have begun and the others.
        values: what each row keeps of its newest finished stage.
        is_resetting: whether rows of the generation are still to be reset.
        earlier_failures: how often cells had failed before the generation.
        earlier_failed_rows: how many rows had failed before the generation and are not among its own.
    """

    job: JobRecord
    cells: dict[Place, Cell] = field(default_factory=dict)
    history: dict[tuple[Place, int], Cell] = field(default_factory=dict)
    cancelled: bool = False
    reason: str | None = None
    tombstoned: bool = False
    decided: set[str] = field(default_factory=set)
    published: int = 0
    claims: dict[str, set[int]] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    values: dict[int, str] = field(default_factory=dict)
    generation: int = 1
    is_resetting: bool = False
    earlier_failures: int = 0
    earlier_failed_rows: int = 0
    repeats_end: bool = False
    """Whether the last write found its cell finished."""

    @property
    def ref(self) -> JobRef:
        """The incarnation of the job."""
        return self.job.ref

    @property
    def places(self) -> list[Place]:
        """The cells that count in the aggregates."""
        return naive.expected(self.job, (tag for tag, _ in self.cells))

    def cell(self, place: Place) -> Cell:
        """Return a cell, or an empty one if it was never written."""
        return self.cells.get(place, Cell())

    def visible(self, place: Place) -> tuple[int, str | None]:
        """Return the status and message that readers see."""
        cell = self.cell(place)
        if self.cancelled and cell.status == 0 and not cell.open:
            return CANCELLED, self.reason
        return cell.status, message_of(cell)

    def begin(self, request: Begin) -> Verdict:
        """Apply a Begin and return the verdict."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        verdict = self._judge(cell, request)
        if verdict is Verdict.BEGUN:
            self._put(place, taken(cell, request), request.event_id)
            self._unblock(place, request.event_id)
        elif verdict is Verdict.PAUSED:
            self._put(place, waiting_again(cell, request), request.event_id)
            self._give_back(place)
        elif verdict is Verdict.CANCELLED and not cell.open and 0 < cell.status < FINISHED:
            ended = replace(cell, status=CANCELLED, message=self.reason, kept=None, owner=None)
            self._put(place, ended, request.event_id)
        self._decide(place)
        return verdict

    def mark(self, request: Write) -> str:
        """Apply a mark that an attempt has stalled. Return the outcome as ``write`` does."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        current = request.if_version == cell.version or cell.stall.since
        if not (cell.open and cell.owner and request.attempt == cell.attempt and current):
            return "AttemptSuperseded"
        new = marked(cell, request)
        if new is None:
            return "same"
        self._put(place, new, request.event_id)
        return "written"

    def write(self, request: Write) -> str:
        """Apply a write. Return ``written``, ``same`` or the name of the expected error."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        if cell.version and cell.event_id == request.event_id:
            return "same"
        attempt = request.attempt
        begins = request.begin is not None and (attempt is None or attempt > cell.attempt)
        late = not begins and cell.awaits_end and request.ends_attempt
        if request.begin is not None and begins:
            forgotten = attempt is not None
            ran = replace(request.begin, may_wait=False)
            verdict = self._judge(cell, ran, ignore_cancel=request.ends_attempt, forgotten=forgotten)
            if verdict is not Verdict.BEGUN:
                return "JobCancelled" if verdict is Verdict.CANCELLED else "BeginRefused"
            attempt = cell.attempt + 1 if attempt is None else attempt
            cell = replace(taken(cell, request.begin), attempt=attempt)
        replaces = request.status == FINISHED or not (request.presumed_dead or cell.status == FINISHED)
        may_end = cell.open or (late and replaces)
        allowed = {When.ANY: True, When.OPEN: may_end, When.IDLE: _is_idle(cell)}[request.when]
        if attempt not in (None, cell.attempt) or not allowed:
            return "AttemptSuperseded"
        ends = request.status < 0 or request.status == FINISHED or request.due_again
        untouched = cell.status == 0 and not cell.open
        was_finished = not cell.open and cell.status == FINISHED
        cancels = request.when is When.IDLE and request.status == CANCELLED
        if self.cancelled and not request.ends_attempt and (untouched or not ends) and not cancels:
            return "JobCancelled"
        if self.cancelled and request.when is When.IDLE:
            request = replace(request, status=CANCELLED, message=self.reason)
        if self.cancelled and request.due_again:
            request = replace(request, status=CANCELLED, message=self.reason, due_again=False, presumed_dead=False)
        self._put(place, written(cell, request), request.event_id)
        now = self.cells[place]
        self.repeats_end = was_finished
        self._keep(request, now)
        if begins or late:
            self._unblock(place, request.event_id)
        if request.block_later_stages and not now.open and now.status < 0:
            self._block(place, now)
        self._decide(place)
        return "written"

    def _keep(self, request: Write, now: Cell) -> None:
        if request.value is not None and now.succeeded:
            self.values.pop(request.task_index, None)
            self.values.update({request.task_index: request.value} if request.value else {})
        if request.due_again and (now.open or 0 <= now.status < FINISHED):
            self._give_back((request.tag, request.task_index))

    def claim(self, request: ClaimRequest) -> tuple[set[int], set[int], int]:
        """Apply a ClaimRequest. Return the rows to publish, those that were claimed before, and the number left."""
        if self.job.flow is None or ("settled" in self.decided and not request.drop_unclaimed):
            return set(), set(), 0
        again = {row for name in request.dead for row in self.claims.get(name, set())}
        own = self.claims.get(request.publisher, set())
        for name in (*request.dead, *request.ended, request.publisher):
            self.claims.pop(name, None)
        begun, waiting = own & set(request.returned.begun), own & set(request.returned.waiting)
        self.begun = (self.begun - waiting) | begun
        self.waiting = (self.waiting - begun) | waiting
        self.begun, self.waiting = self.begun - again, self.waiting - again
        rows, window = set(again), self.job.flow.max_in_flight
        held = self.cancelled or self.job.flow.paused
        for _ in range(request.limit):
            ended = sum(map(self._has_ended, range(self.job.num_tasks)))
            in_flight = self.published - ended - len(self.begun) - len(self.waiting)
            if window is not None and in_flight >= window and not self.cancelled:
                break
            if self.begun or (self.waiting and not held):
                row = min(self.begun or self.waiting)
                (self.begun or self.waiting).remove(row)
                again.add(row)
            elif not held and self.published < self.job.num_tasks:
                row = self.published
                self.published += 1
            else:
                break
            rows.add(row)
        if rows:
            self.claims[request.publisher] = rows
        if self.cancelled and request.drop_unclaimed:
            self.published = self.job.num_tasks
        return rows, again, self.job.num_tasks - self.published

    def claim_after(self, request: Write) -> set[int]:
        """Apply the claim that a write of a final cell makes, and return its rows."""
        cell = self.cell((request.tag, request.task_index))
        ended = not cell.open and (cell.status < 0 or cell.status == FINISHED)
        if request.publisher is None or not ended or self.job.flow is None:
            return set()
        row = {request.task_index}
        if request.next_is_due and cell.status == FINISHED:
            if self.cancelled or self.repeats_end:
                return set()
            self.begun, self.waiting = self.begun - row, self.waiting - row
            self.claims[request.publisher] = row
            return row
        if self.job.flow.max_in_flight is None:
            return set()
        self.begun, self.waiting = self.begun - row, self.waiting - row
        return self.claim(ClaimRequest(publisher=request.publisher, limit=CLAIMS_AT_AN_END))[0]

    def set_window(self, rows: int | None) -> None:
        """Change the maximum number of rows in flight."""
        assert self.job.flow is not None
        self.job = replace(self.job, flow=replace(self.job.flow, max_in_flight=rows))

    def set_paused(self, paused: bool) -> None:
        """Pause or resume the job."""
        assert self.job.flow is not None
        self.job = replace(self.job, flow=replace(self.job.flow, paused=paused))

    def cancel(self, reason: str | None) -> None:
        """Cancel the job."""
        self.cancelled, self.reason = True, reason
        self._decide(None)

    @property
    def failures(self) -> int:
        """How often cells that count have failed."""
        return sum(self.cell(place).failures for place in self.places)

    def failed_cells(self, rows: Collection[int]) -> int:
        """Return how many cells in some rows have failed."""
        return sum(self.cell(place).has_failed for place in self.places if place[1] in rows)

    @property
    def failed_rows(self) -> int:
        """How many rows have failed in the generation."""
        return max(0, self.failed_cells(range(self.job.num_tasks)) - self.earlier_failed_rows)

    def rerun(self, row: int) -> None:
        """Begin a new generation with a row."""
        self.earlier_failed_rows = self.failed_cells([each for each in range(self.job.num_tasks) if each != row])
        self.generation += 1
        self.is_resetting, self.cancelled, self.reason = True, False, None
        self.earlier_failures = self.failures
        self.decided = set()

    def end_reset(self) -> None:
        """Record that all rows are reset."""
        self.is_resetting = False
        self._decide(None)

    def reset_row(self, place: Place, event_id: str) -> bool:
        """Reset a row from a stage on. Return whether it was reset."""
        places = [place, *self._later(place)]
        cells = [self.cell(each) for each in places]
        ended = [not cell.open and (cell.status <= 0 or cell.status == FINISHED) for cell in cells]
        has_succeeded = all(cell.status == FINISHED and not cell.open for cell in cells)
        was_reset = any(cell.generation == self.generation for cell in cells)
        if self.cancelled or not all(ended) or has_succeeded or was_reset:
            return False
        for each, cell in zip(places, cells):
            self._put(each, reset(cell, self.generation), event_id)
        self._give_back(place)
        return True

    def migrate(self) -> None:
        """Change every cell to the next schema."""
        self.cells = {
            place: replace(cell, schema_version=cell.schema_version + 1) for place, cell in self.cells.items()
        }

    def _judge(
        self,
        cell: Cell,
        request: Begin,
        *,
        ignore_cancel: bool = False,
        forgotten: bool = False,
    ) -> Verdict:
        goes_on = forgotten or self._reopens(cell, request)
        paused = self.job.flow is not None and self.job.flow.paused
        final = not cell.open and cell.status < 0
        rank = (request.delivery > cell.delivery) - (request.delivery < cell.delivery)
        first_true: list[tuple[Callable[[], bool], Verdict]] = [
            (lambda: cell.status == FINISHED and not cell.open, Verdict.FINISHED),
            (lambda: "settled" in self.decided and not goes_on, Verdict.CLOSED),
            (lambda: self.cancelled and not ignore_cancel, Verdict.CANCELLED),
            (lambda: request.takes_over or forgotten, Verdict.BEGUN),
            (lambda: cell.open and request.supersedes == cell.attempt, Verdict.BEGUN),
            (lambda: rank < 0, Verdict.STALE),
            (lambda: rank == 0 and cell.open, Verdict.DUPLICATE),
            (lambda: rank == 0 and final and cell.has_run and request.owner is not None, Verdict.CLOSED),
            (lambda: paused and request.may_wait and cell.status == 0 and not cell.open, Verdict.PAUSED),
        ]
        return next((verdict for holds, verdict in first_true if holds()), Verdict.BEGUN)

    def _reopens(self, cell: Cell, request: Begin) -> bool:
        if self.cancelled or (request.tag, request.task_index) not in self.places:
            return False
        ended = not cell.open and (cell.status < 0 or cell.status == FINISHED)
        return not ended or (cell.status == Status.LOST and not cell.has_run and cell.blocked_by is None)

    def _put(self, place: Place, cell: Cell, event_id: str) -> None:
        version = self.cell(place).version + 1
        self.cells[place] = replace(cell, version=version, event_id=event_id)
        self.history[place, version] = self.cells[place]

    def _give_back(self, place: Place) -> None:
        tag, row = place
        if self.job.flow is None:
            return
        shapes = self.job.plan.shapes if self.job.plan else ()
        is_later = any(row in rows and tag in stages[1:] for stages, rows in shapes)
        begun = is_later or self.cell(place).status != 0
        self.begun, self.waiting = self.begun - {row}, self.waiting - {row}
        (self.begun if begun else self.waiting).add(row)

    def _later(self, place: Place) -> list[Place]:
        tag, row = place
        for stages, rows in self.job.plan.shapes if self.job.plan else ():
            if row in rows and tag in stages:
                return [(each, row) for each in stages[stages.index(tag) + 1 :]]
        return []

    def _has_ended(self, row: int) -> bool:
        """Return whether the last stage of a row is final."""
        for stages, rows in self.job.plan.shapes if self.job.plan else ():
            if row in rows:
                cell = self.cell((stages[-1], row))
                return not cell.open and (cell.status < 0 or cell.status == FINISHED)
        return False

    def _block(self, place: Place, failed: Cell) -> None:
        message = f"not run: stage {place[0]!r} failed: {failed.message or failed.status}"
        for later in self._later(place):
            cell = self.cell(later)
            if cell.status == 0 and not cell.open:
                blocked = replace(
                    cell, status=failed.status, message=message, blocked_by=place[0], owner=None, kept=None
                )
                self._put(later, blocked, failed.event_id)

    def _unblock(self, place: Place, event_id: str) -> None:
        for later in self._later(place):
            cell = self.cell(later)
            if cell.version and cell.blocked_by == place[0]:
                self._put(later, replace(cell, status=0, message=None, blocked_by=None, owner=None), event_id)

    def _decide(self, place: Place | None) -> None:
        if self.is_resetting or self.job.plan is None or not (place is None or place in self.places):
            return
        cells = [self.cell(each) for each in self.places]
        final = [not cell.open and (cell.status < 0 or cell.status == FINISHED) for cell in cells]
        resting = not any(cell.open or 0 < cell.status < FINISHED for cell in cells)
        limit, failed = self.job.policy.max_failed, self.failures > self.earlier_failures
        succeeds = all(is_final and cell.status == FINISHED for cell, is_final in zip(cells, final))
        if limit is not None:
            failed = self.failed_rows > limit
            tolerates = self.failed_cells(range(self.job.num_tasks)) <= limit
            ends = all(each.status == FINISHED or each.has_failed or each.blocked_by for each in cells)
            succeeds = tolerates and all(final) and ends
        if limit is not None and failed and not self.cancelled and "settled" not in self.decided:
            rows = "1 row" if self.failed_rows == 1 else f"{self.failed_rows} rows"
            self.cancelled, self.reason = True, f"{rows} failed, at most {limit} may (max_failed)"
        if resting if self.cancelled else all(final):
            self.decided.add("settled")
        if succeeds and not self.cancelled:
            self.decided.add("success")
        if failed:
            self.decided.add("failure")


def _is_idle(cell: Cell) -> bool:
    return not cell.open and 0 <= cell.status < FINISHED
