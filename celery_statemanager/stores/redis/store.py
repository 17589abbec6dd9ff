"""``RedisStore``: each step is one script, and therefore atomic and one round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from celery_statemanager.aggregate import lowest, missing_state
from celery_statemanager.codec import control_to_json
from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import JobExists, JobNotFound, StoreUnavailable
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
from celery_statemanager.stores import checked_timeout, masked
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore, draft_expired, read_ahead
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.redis import migrating, outbox, row_values
from celery_statemanager.stores.redis.address import check_options, create_client, parse
from celery_statemanager.stores.redis.jobs import WITH_PLAN, changes_of, fields_of, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, entry_of, head_key
from celery_statemanager.stores.redis.layout import JobLayout
from celery_statemanager.stores.redis.listing import jobs_at, newest_jobs, open_attempts, page_of_jobs, scan, states_of
from celery_statemanager.stores.redis.packing import pack
from celery_statemanager.stores.redis.reader import JobReader
from celery_statemanager.stores.redis.registry import JobFilter, Registry
from celery_statemanager.stores.redis.requests import (
    begin_call,
    begin_reply,
    reset_call,
    texts,
    write_call,
    write_reply,
)
from celery_statemanager.stores.redis.scripts import Script, Scripts
from celery_statemanager.stores.redis.server import Server
from celery_statemanager.stores.redis.tuning import Tuning
from celery_statemanager.stores.redis.watch import RedisWatch


class RedisStore(FullStore):
    """A store on a Redis server, a Redis cluster, or a compatible server. Thread-safe, and usable after a fork.

    Args:
        client: a ``redis.Redis`` or ``redis.RedisCluster`` with ``decode_responses=False``. The store never closes it.
        prefix: the prefix of all keys.
        stream_length: about how many changes a job keeps for subscribers. One that is further behind reads all states.
        timeout: seconds for which a subscription waits for a reply. Other calls use the timeout of the client.
        tuning: the periods and sizes by which the store bounds its work.
    """

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "statemanager",
        stream_length: int = 10_000,
        timeout: float = 5.0,
        tuning: Tuning = Tuning(),  # noqa: B008 - immutable
    ) -> None:
        self._timeout = checked_timeout(timeout)
        self._server = client if isinstance(client, Server) else Server.from_client(client, self._timeout)
        self._scripts = Scripts(stream_length)
        self._reader = JobReader(self._server, self._scripts, prefix, tuning)
        self._registry = Registry(self._server, self._scripts, prefix, tuning)
        self._prefix = prefix
        fork_aware(self._server)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, tuning: Tuning | None = None, **options: Any) -> RedisStore:
        address = parse(url, timeout, options)
        check_options(address)
        own = {name: address.own[name] for name in ("prefix", "stream_length", "timeout") if name in address.own}
        server = Server(partial(create_client, address), masked(url), address.max_connections, own["timeout"])
        return cls(server, tuning=tuning or Tuning(), **own)

    def server_warnings(self) -> list[str]:
        return self._server.warnings()

    def create_job(self, job: JobRecord) -> JobRecord:
        keys = JobKeys(self._prefix, job.ref)
        self._registry.register(job.ref)
        names = [keys.head, keys.stream, keys.draft, keys.blocks]
        args = ["" if job.flow is None else "messages", *fields_of(job)]
        status, *reply = self._reader.run(self._scripts.create, job.ref, names, args)
        if status != b"created":
            self._registry.forget(job.ref)
            raise JobExists(*job.key) if status == b"exists" else draft_expired(job)
        if job.flow is not None:
            with suppress(StoreUnavailable):  # the entry is removed when the lease ends
                self._registry.forget_draft(job.ref)
        created = int(reply[0])
        stored = replace(job, created_at=created, last_activity=created, revision=1, latches=dict(job.latches))
        return self._reader.cache_layout(stored).job

    def get_job(self, key: JobKey) -> JobRecord:
        head = self._server.call("HMGET", head_key(self._prefix, key), *WITH_PLAN)
        if head[0] is None:
            raise JobNotFound(*key)
        return record_of(key, head, plan_of(head))

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        layout = self._reader.layout(job.ref)
        self._registry.touch(layout, "job" if job.tombstoned_at is None else "tombstone")
        keys = [layout.keys.head, layout.keys.tallies, layout.keys.open, layout.keys.stream]
        args: list[str | bytes] = [pack({"revision": job.revision, **changes_of(job)}), control_to_json(job)]
        status, *names = self._reader.run(self._scripts.update, job.ref, keys, args)
        return None if status == b"moved" else texts(names)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        return page_of_jobs(self._reader, self._registry, cursor, limit, JobFilter(due, tombstoned, idle_before))

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        return newest_jobs(self._reader, self._registry, cursor, limit)

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        entries = self._registry.named(job_id, limit)
        return [job.run_token for _, job in jobs_at(self._server, self._registry, self._prefix, entries)]

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        keys = JobKeys(self._prefix, job.ref)
        unchanged = [job.revision, job.last_activity] if if_idle else ["", ""]
        (status,) = self._reader.run(self._scripts.detach, job.ref, [keys.head, keys.stream], unchanged)
        if status != b"detached":
            return False
        self._registry.queue_purge(job.ref)
        if purge:
            with suppress(StoreUnavailable):  # the job is deleted already, and its keys are queued
                self._registry.purge_job(entry_of(job.ref), purge)
        return True

    def purge(self, limit: int = 1_000) -> int:
        return self._registry.purge(limit)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        layout = self._reader.layout(ref)
        return write_reply(ref, write, self._step(self._scripts.write, layout, *write_call(layout, write)))

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        layout = self._reader.layout(ref)
        return begin_reply(self._step(self._scripts.begin, layout, *begin_call(layout, begin)))

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        return self._reader.cell(ref, tag, task_index)

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        if scope.task_index is None:
            job, columns = self._reader.columns(ref, scope.tag)
            states = [column.lowest for column in columns if column.lowest is not None]
        else:
            job, states = self._reader.row(ref, scope, scope.task_index)
        return lowest(states) or missing_state(job, scope.tag or "", scope.task_index or 0)

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        return self._reader.column_summaries(ref, tag) if indexes else self._reader.columns(ref, tag)

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        cells = scan(self._server, self._reader.layout(ref), scope)
        return states_of(self._reader.check(ref, cells.tags), cells)

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return RedisWatch(self._reader, self._reader.layout(ref), scope, since, self._timeout)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        migrating.adopt(self._reader, self._registry, self._scripts, ref, incarnation, Deadline(self._timeout))
        return self.get_job(ref.key)

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        self._reader.check(ref, ())  # raises JobNotFound; the cached layout does not
        return migrating.list_outdated(self._reader, self._reader.layout(ref), below)

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        return migrating.rewrite(self._reader, self._scripts, self._reader.layout(ref), cells)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        outbox.add_block(self._reader, self._registry, ref, first, data, lease)

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        return outbox.get_block(self._reader, ref, row)

    def get_value(self, ref: JobRef, row: int) -> str | None:
        return row_values.get_value(self._reader, self._scripts, ref, row)

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        return read_ahead(row_values.pages_of_values(self._reader, self._scripts, ref, rows))

    def drop_draft(self, ref: JobRef) -> None:
        outbox.drop_draft(self._reader, self._registry, ref)

    def drop_expired_drafts(self) -> int:
        return self._registry.drop_expired_drafts()

    def get_outbox(self, ref: JobRef) -> OutboxState:
        return outbox.get_state(self._reader, self._scripts, ref)

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        return outbox.claim(self._reader, self._scripts, ref, request)

    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        layout = self._reader.layout(ref)
        (status,) = self._step(self._scripts.reset, layout, *reset_call(layout, reset))
        return bool(status == b"reset")

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        self._registry.put_worker(worker_id, body, lease)

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        return self._registry.put_worker(name, holder, seconds, as_lock=True)

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        return self._registry.worker(worker_id)

    def list_workers(self) -> Iterator[WorkerRecord]:
        return self._registry.workers()

    def drop_worker(self, worker_id: str) -> None:
        self._registry.drop_worker(worker_id)

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        return open_attempts(self._server, self._registry, self._prefix, self.now())

    def now(self) -> int:
        return self._server.time_at(self._registry.keys.jobs)

    def close(self) -> None:
        self._server.close()

    def __repr__(self) -> str:
        return f"<RedisStore {self._server.shown}>"

    def _step(self, script: Script, layout: JobLayout, keys: tuple[str, ...], args: list[str | bytes]) -> Any:
        """Touch the job and run a step on one of its cells. Register the job again if it is not registered."""
        registered = self._registry.touch(layout)
        reply = self._reader.run(script, layout.job.ref, keys, args)
        if not registered:
            self._registry.register(layout.job.ref)
        return reply
