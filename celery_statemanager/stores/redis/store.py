"""``RedisStore``: every step one script, and so atomic and one round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from celery_statemanager.aggregate import lowest, missing_state
from celery_statemanager.codec import control_to_json
from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import (
    AttemptSuperseded,
    BeginRefused,
    JobCancelled,
    JobExists,
    JobNotFound,
    StoreUnavailable,
)
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    OpenAttempt,
    Page,
    StoredCell,
    Verdict,
    WorkerRecord,
    Write,
    WriteReply,
)
from celery_statemanager.stores import checked_timeout, masked
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.redis import migrating
from celery_statemanager.stores.redis.address import check_options, client_of, parse
from celery_statemanager.stores.redis.cells import cell_of
from celery_statemanager.stores.redis.jobs import WITH_PLAN, changes_of, fields_of, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, entry_of, head_key
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.listing import jobs_at, open_attempts, rid_of_revived, scan, states_of
from celery_statemanager.stores.redis.packing import pack
from celery_statemanager.stores.redis.reader import Reader
from celery_statemanager.stores.redis.registry import Registry, cursor_at
from celery_statemanager.stores.redis.requests import begin_call, write_call
from celery_statemanager.stores.redis.scripts import Script, Scripts
from celery_statemanager.stores.redis.server import Server
from celery_statemanager.stores.redis.watch import RedisWatch


class RedisStore(FullStore):
    """Keeps jobs on a Redis server, a Redis cluster, or what speaks their language.

    Thread-safe. May be made, and used, before a fork and used after it: connections are per process.

    Args:
        client: a ``redis.Redis`` or ``redis.RedisCluster`` that gives bytes; it stays open when the store is closed.
        prefix: what the names of all keys begin with.
        stream_length: changes that a job keeps for its subscribers, about; one that is further behind reads all
            states again.
        timeout: seconds that a subscription waits for an answer; other calls wait as long as the client says.
    """

    def __init__(
        self, client: Any, *, prefix: str = "statemanager", stream_length: int = 10_000, timeout: float = 5.0
    ) -> None:
        self._server = client if isinstance(client, Server) else Server.from_client(client)
        self._scripts = Scripts(stream_length)
        self._reader = Reader(self._server, self._scripts, prefix)
        self._registry = Registry(self._server, self._scripts, prefix)
        self._prefix = prefix
        self._timeout = checked_timeout(timeout)
        fork_aware(self._server)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> RedisStore:
        address = parse(url, timeout, options)
        check_options(address)
        own = {name: value for name, value in address.own.items() if name != "cluster"}
        return cls(Server(partial(client_of, address), masked(url)), **own)

    def create_job(self, job: JobRecord) -> JobRecord:
        keys = JobKeys(self._prefix, job.ref)
        self._registry.register(job.ref)
        word, *rest = self._reader.run(self._scripts.create, job.ref, [keys.head, keys.stream], fields_of(job))
        if word == b"exists":
            self._registry.forget(job.ref)
            raise JobExists(*job.key)
        created = int(rest[0])
        kept = replace(job, created_at=created, last_activity=created, revision=1, latches=dict(job.latches))
        self._reader.remember(kept)
        return kept

    def get_job(self, key: JobKey) -> JobRecord:
        head = self._server.call("HMGET", head_key(self._prefix, key), *WITH_PLAN)
        if head[0] is None:
            raise JobNotFound(*key)
        return record_of(key, head, plan_of(head))

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        layout = self._reader.layout(job.ref)
        self._registry.touch(layout, "job" if job.tombstoned_at is None else "tomb")
        keys = [layout.keys.head, layout.keys.tallies, layout.keys.open, layout.keys.stream]
        args: list[str | bytes] = [pack({"revision": job.revision, **changes_of(job)}), control_to_json(job)]
        word, *names = self._reader.run(self._scripts.update, job.ref, keys, args)
        return None if word == b"moved" else _texts(names)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        page = self._registry.listed(cursor, limit, due=due, tombstoned=tombstoned, idle_before=idle_before)
        found = list(jobs_at(self._server, self._registry, self._prefix, page))
        if tombstoned:
            rid_of_revived(self._registry, found)
        jobs = [
            job
            for job in found
            if (not due or job.due)
            and (not tombstoned or job.tombstoned_at is not None)
            and (idle_before is None or job.last_activity < idle_before)
        ]
        return Page(jobs, cursor_at(page[-1]) if page and len(page) == limit else None)

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        found = jobs_at(self._server, self._registry, self._prefix, self._registry.named(job_id, limit))
        return [job.run_token for job in found]

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        keys = JobKeys(self._prefix, job.ref)
        unmoved = [job.revision, job.last_activity] if if_idle else ["", ""]
        word = self._reader.run(self._scripts.detach, job.ref, [keys.head, keys.stream], unmoved)[0]
        if word != b"detached":
            return False
        self._registry.trash(job.ref)
        if purge:
            with suppress(StoreUnavailable):  # the job is deleted; what is left of it is purged later
                self._registry.purge_job(entry_of(job.ref), purge)
        return True

    def purge(self, limit: int = 1_000) -> int:
        return self._registry.purge(limit)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        layout = self._reader.layout(ref)
        reply = self._step(self._scripts.write, layout, *write_call(layout, write))
        if isinstance(reply, bytes):
            return WriteReply(cell_of(reply))
        word, *rest = reply
        if word in (b"written", b"same"):
            return WriteReply(cell_of(rest[0]), _texts(rest[1:]), word == b"written")
        if word == b"superseded":
            raise AttemptSuperseded(ref.key.job_id, write.tag, write.task_index, write.attempt, rest[0])
        if word == b"cancelled":
            raise JobCancelled(ref.key.job_id, rest[0] and rest[0].decode())
        raise BeginRefused(ref.key.job_id, write.tag, write.task_index, rest[0].decode())

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        layout = self._reader.layout(ref)
        reply = self._step(self._scripts.begin, layout, *begin_call(layout, begin))
        if isinstance(reply, bytes):
            return BeginReply(Verdict.BEGUN, cell_of(reply))
        word, packed, *names = reply
        return BeginReply(Verdict(word.decode()), cell_of(packed), _texts(names))

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        return self._reader.cell(ref, tag, task_index)

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        if scope.task_index is None:
            job, columns = self._reader.columns(ref, scope.tag)
            found = [column.lowest for column in columns if column.lowest is not None]
        else:
            job, found = self._reader.row(ref, scope, scope.task_index)
        return lowest(found) or missing_state(job, scope.tag or "", scope.task_index or 0)

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        return self._reader.column_summaries(ref, tag) if indexes else self._reader.columns(ref, tag)

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        found = scan(self._server, self._reader.layout(ref), scope)
        job, _ = self._reader.row(ref, Scope(tag=""), 0)
        return states_of(job, found)

    def watch(self, ref: JobRef, scope: Scope) -> Watch:
        return RedisWatch(self._server, self._reader.layout(ref), scope, self._timeout)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        deadline = Deadline(self._timeout)
        migrating.adopt(self._reader, self._registry, self._scripts, ref, incarnation, deadline)
        return self.get_job(ref.key)

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        self._reader.row(ref, Scope(tag=""), 0)  # it is there
        return migrating.outdated(self._reader, self._reader.layout(ref), below)

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        return migrating.rewrite(self._reader, self._scripts, self._reader.layout(ref), cells)

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        self._registry.put_worker(worker_id, body, lease)

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        return self._registry.put_worker(name, holder, seconds, in_turn=True)

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

    def _step(self, script: Script, layout: Layout, keys: tuple[str, ...], args: list[str | bytes]) -> Any:
        """Change a cell; the registry is told before, and once more if it has lost a job that lives."""
        registered = self._registry.touch(layout)
        reply = self._reader.run(script, layout.job.ref, keys, args)
        if not registered:
            self._registry.register(layout.job.ref)
        return reply


def _texts(names: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)
