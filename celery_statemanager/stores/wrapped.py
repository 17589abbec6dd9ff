"""A store that passes every call to another one: a base class for measuring, delaying or failing calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Claimed,
    ClaimRequest,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    Listed,
    OpenAttempt,
    OutboxState,
    Page,
    Reset,
    StoredCell,
    WorkerRecord,
    Write,
    WriteReply,
)
from celery_statemanager.stores import masked
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import CallerTransaction, FullStore, JobCreator

T = TypeVar("T")


class WrappedStore(FullStore):
    """A store that delegates to ``inner``. Subclasses override single methods, or ``calling`` for all of them.

    Args:
        inner: the wrapped store. The caller that created it closes it.
    """

    def __init__(self, inner: FullStore) -> None:
        self.inner = inner

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> WrappedStore:
        raise ConfigurationError(f"{cls.__name__} cannot be created from {masked(url)}: pass it the store to wrap")

    def calling(self, method: str, call: Callable[[], T]) -> T:
        """Run the call of a method on the inner store. Raises: what the inner store raises."""
        return call()

    def require(self) -> None:
        self.calling("require", lambda: self.inner.require())

    def server_warnings(self) -> list[str]:
        return self.calling("server_warnings", lambda: self.inner.server_warnings())

    def create_tables(self) -> None:
        self.calling("create_tables", lambda: self.inner.create_tables())

    def create_job(self, job: JobRecord) -> JobRecord:
        return self.calling("create_job", lambda: self.inner.create_job(job))

    def get_job(self, key: JobKey) -> JobRecord:
        return self.calling("get_job", lambda: self.inner.get_job(key))

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        return self.calling("update_job", lambda: self.inner.update_job(job))

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        only: dict[str, Any] = {"due": due, "tombstoned": tombstoned, "idle_before": idle_before}
        return self.calling("list_jobs", lambda: self.inner.list_jobs(cursor, limit, **only))

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        return self.calling("newest_jobs", lambda: self.inner.newest_jobs(cursor, limit))

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        return self.calling("list_runs", lambda: self.inner.list_runs(job_id, limit))

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        return self.calling("delete_job", lambda: self.inner.delete_job(job, if_idle=if_idle, purge=purge))

    def purge(self, limit: int = 1_000) -> int:
        return self.calling("purge", lambda: self.inner.purge(limit))

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        return self.calling("write", lambda: self.inner.write(ref, write))

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        return self.calling("begin", lambda: self.inner.begin(ref, begin))

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        return self.calling("get_cell", lambda: self.inner.get_cell(ref, tag, task_index))

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        return self.calling("lowest", lambda: self.inner.lowest(ref, scope))

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        return self.calling("column_summaries", lambda: self.inner.column_summaries(ref, tag, indexes=indexes))

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        return self.calling("list_states", lambda: self.inner.list_states(ref, scope))

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return self.calling("watch", lambda: self.inner.watch(ref, scope, since))

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        return self.calling("adopt_job", lambda: self.inner.adopt_job(ref, incarnation))

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        return self.calling("outdated_cells", lambda: self.inner.outdated_cells(ref, below))

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        return self.calling("rewrite_cells", lambda: self.inner.rewrite_cells(ref, cells))

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        self.calling("add_block", lambda: self.inner.add_block(ref, first, data, lease))

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        return self.calling("get_block", lambda: self.inner.get_block(ref, row))

    def get_value(self, ref: JobRef, row: int) -> str | None:
        return self.calling("get_value", lambda: self.inner.get_value(ref, row))

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        return self.calling("list_values", lambda: self.inner.list_values(ref, rows))

    def join(self, transaction: CallerTransaction) -> JobCreator | None:
        return self.calling("join", lambda: self.inner.join(transaction))

    def drop_draft(self, ref: JobRef) -> None:
        self.calling("drop_draft", lambda: self.inner.drop_draft(ref))

    def drop_expired_drafts(self) -> int:
        return self.calling("drop_expired_drafts", lambda: self.inner.drop_expired_drafts())

    def get_outbox(self, ref: JobRef) -> OutboxState:
        return self.calling("get_outbox", lambda: self.inner.get_outbox(ref))

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        return self.calling("claim", lambda: self.inner.claim(ref, request))

    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        return self.calling("reset_row", lambda: self.inner.reset_row(ref, reset))

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        self.calling("put_worker", lambda: self.inner.put_worker(worker_id, body, lease))

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        return self.calling("try_acquire", lambda: self.inner.try_acquire(name, holder, seconds))

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        return self.calling("get_worker", lambda: self.inner.get_worker(worker_id))

    def list_workers(self) -> Iterator[WorkerRecord]:
        return self.calling("list_workers", lambda: self.inner.list_workers())

    def drop_worker(self, worker_id: str) -> None:
        self.calling("drop_worker", lambda: self.inner.drop_worker(worker_id))

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        return self.calling("list_open_attempts", lambda: self.inner.list_open_attempts())

    def now(self) -> int:
        return self.calling("now", lambda: self.inner.now())

    def expect_forks(self) -> None:
        self.calling("expect_forks", lambda: self.inner.expect_forks())
