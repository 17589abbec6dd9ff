"""A store of your own: a folder with one JSON file for each job. docs/writing-a-store.md explains it step by step.

A step reads the file of its job and replaces it: readers always find a complete file, and a step that fails changes
nothing. A lock on the file ``lock`` excludes writers in all threads and processes of a machine. The object remembers
nothing, so threads and forks cannot disturb it. Each call reads all cells of a job: use it for some thousand cells.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from celery_statemanager import aggregate, codec
from celery_statemanager import records as r
from celery_statemanager.errors import JobExists, JobNotFound, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import parse_position
from celery_statemanager.models import Scope, State
from celery_statemanager.stores import FullStore, Outbox, Watch, recount
from celery_statemanager.stores.capabilities import draft_expired
from celery_statemanager.stores.steps import Transaction, mark_of
from celery_statemanager.stores.transactional import CellKey, Reply, TransactionalStore

POLL = 0.01  # seconds between two reads of a file that is watched


class JobFile:
    """One job as its file holds it, and the ``Transaction`` of a step.

    Changes are numbered: ``changes`` is the last number, ``job_changed`` that of the job's own last change.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.job = codec.job_from_fields(content["job"])
        self.now: int = content["now"]
        self.changes: int = content["changes"]
        self.job_changed: int = content["job_changed"]
        self.values: dict[str, str | None] = content["values"]
        self._outbox = content["outbox"]
        self._cells = {(tag, row): (change, fields) for tag, row, change, fields in content["cells"]}

    def save(self) -> None:
        content = {name: getattr(self, name) for name in ("now", "changes", "job_changed", "values")}
        cells = [(*key, *stored) for key, stored in self._cells.items()]
        content |= {"job": codec.job_to_fields(self.job), "outbox": self._outbox, "cells": cells}
        _replace(self.path, content)

    def cell(self, tag: str, task_index: int) -> r.Cell | None:
        kept = self._cells.get((tag, task_index))
        return None if kept is None else codec.cell_from_fields(kept[1])

    def change(self, tag: str, task_index: int) -> int:
        number: int = self._cells[tag, task_index][0]
        return number

    def put(self, tag: str, task_index: int, old: r.Cell | None, new: r.Cell) -> None:
        self.changes += 1
        self._cells.pop((tag, task_index), None)  # the last change stands last
        self._cells[tag, task_index] = self.changes, codec.cell_to_fields(new)
        self.job = replace(self.job, last_activity=self.now)

    def rewrite(self, tag: str, task_index: int, old: r.Cell, new: r.Cell) -> None:
        self._cells[tag, task_index] = self._cells[tag, task_index][0], codec.cell_to_fields(new)

    def total(self) -> r.Tally:
        return recount.total(self.job, self.cells)

    def put_job(self, job: r.JobRecord) -> None:
        self.changes += 1
        self.job_changed = self.changes
        self.job = replace(job, revision=self.job.revision + 1)

    def outbox(self) -> r.OutboxState:
        return codec.outbox_from_json(*self._outbox)

    def put_outbox(self, state: r.OutboxState) -> None:
        self._outbox = state.claimed, codec.outbox_to_json(state)

    def put_value(self, task_index: int, value: str | None) -> None:
        self.values[str(task_index)] = value

    @property
    def cells(self) -> dict[CellKey, r.Cell]:
        return {key: codec.cell_from_fields(fields) for key, (_, fields) in self._cells.items()}

    def states(self, scope: Scope, since: int = 0) -> list[State]:
        """Return the states that changed after the change of that number, oldest change first."""
        return [
            aggregate.visible_state(self.job, tag, row, codec.cell_from_fields(fields))
            for (tag, row), (change, fields) in self._cells.items()
            if change > since and row >= 0 and scope.holds(tag, row)
        ]


class FolderStore(TransactionalStore):
    """Jobs and cells: enough for Managers, subscriptions and barriers."""

    def __init__(self, folder: Path, *, timeout: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._timeout = timeout
        self._clock = clock
        folder.joinpath("jobs").mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> FolderStore:
        return cls(Path(url.partition("://")[2]), timeout=timeout, **options)

    def now(self) -> int:
        return int(self._clock() * 1_000_000)

    def create_job(self, job: r.JobRecord) -> r.JobRecord:
        with self._lock():
            path = self._path(job.key)
            if path.exists():
                raise JobExists(*job.key)
            self.accept(job)
            now = self.now()
            fields = codec.job_to_fields(replace(job, created_at=now, last_activity=now, revision=1))
            content = {"job": fields, "now": now, "changes": 0, "job_changed": 0, "cells": [], "values": {}}
            _replace(path, content | {"outbox": [0, codec.outbox_to_json(r.OutboxState())]})
            return self.read(*job.ref).job

    def accept(self, job: r.JobRecord) -> None:
        """Take over the messages of a job that is created. This store keeps none."""

    def get_job(self, key: r.JobKey) -> r.JobRecord:
        return self.read(key).job

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> r.Page:
        wanted = {
            f"{job.created_at:020}{job.incarnation}": job
            for job in (file.job for file in self._files())
            if (not due or job.due) and (not tombstoned or job.tombstoned_at is not None)
            if idle_before is None or job.last_activity < idle_before
        }
        positions = sorted(position for position in wanted if cursor is None or position > cursor)
        page = [wanted[position] for position in positions[:limit]]
        return r.Page(page, positions[limit - 1] if len(positions) > limit else None)

    def delete_job(self, job: r.JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        with self._lock():
            now = self.read(*job.ref).job
            if if_idle and (now.revision, now.last_activity) != (job.revision, job.last_activity):
                return False
            self._path(job.key).unlink()
            self._blocks(job.ref).unlink(missing_ok=True)
            return True

    def purge(self, limit: int = 1_000) -> int:
        return 0  # a deleted job leaves nothing behind

    def transact(self, ref: r.JobRef, step: Callable[[Transaction], Reply], key: CellKey | None = None) -> Reply:
        with self._lock():
            file = self.read(*ref)
            file.now = max(file.now, self.now())
            reply = step(file)
            file.save()
            return reply

    def get_cell(self, ref: r.JobRef, tag: str, task_index: int) -> r.Cell | None:
        return self.read(*ref).cell(tag, task_index)

    def lowest(self, ref: r.JobRef, scope: Scope) -> State:
        file = self.read(*ref)
        return recount.lowest(file.job, file.cells, scope)

    def column_summaries(
        self, ref: r.JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[r.JobRecord, list[r.Column]]:
        file = self.read(*ref)
        return file.job, recount.column_summaries(file.job, file.cells, tag, indexes=indexes)

    def list_states(self, ref: r.JobRef, scope: Scope) -> Iterator[State]:
        return iter(sorted(self.read(*ref).states(scope), key=lambda each: (each.timestamp, each.tag, each.task_index)))

    def watch(self, ref: r.JobRef, scope: Scope, since: str | None = None) -> Watch:
        return FolderWatch(self, ref, scope, since)

    def _path(self, key: r.JobKey) -> Path:
        return self._folder / "jobs" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"

    def _blocks(self, ref: r.JobRef) -> Path:
        return self._folder / f"{ref.incarnation}.blocks"

    def read(self, key: r.JobKey, incarnation: str | None = None) -> JobFile:
        file = _load(self._path(key))
        if file is None or incarnation not in {None, file.job.incarnation}:
            raise JobNotFound(*key)
        return file

    def _files(self) -> Iterator[JobFile]:
        return filter(None, map(_load, self._folder.glob("jobs/*.json")))

    def _lock(self) -> IO[bytes]:
        """Acquire the lock of the folder; closing the file that is returned releases it."""
        file = self._folder.joinpath("lock").open("wb")
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.close()
                    raise StoreUnavailable(f"{self._folder} was locked for more than {self._timeout:g} s") from error
            time.sleep(0.001)


class FolderWatch(Watch):
    """Reads the file of a job again and again."""

    def __init__(self, store: FolderStore, ref: r.JobRef, scope: Scope, since: str | None) -> None:
        self._store, self._ref, self._scope = store, ref, scope
        self._closed = threading.Event()
        self._seen = newest = store.read(*ref).changes
        if since is not None:
            (self._seen,) = parse_position(since, 1)
        self._restored = self._seen > newest

    @property
    def cursor(self) -> str:
        return str(self._seen)

    def read(self, timeout: float) -> r.Batch:
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            file = self._store.read(*self._ref)
            if self._restored:
                self._seen, self._restored = file.changes, False
                return r.Batch([], job_changed=True, resync=True)
            states = file.states(self._scope, self._seen)
            cursors = [str(file.change(state.tag, state.task_index)) for state in states]
            batch = r.Batch(states, file.job_changed > self._seen, cursors=cursors)
            self._seen = file.changes
            if batch.states or batch.job_changed:
                return batch
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._closed.wait(min(POLL, left))
        return r.Batch([])

    def close(self) -> None:
        self._closed.set()


class SweptFolderStore(FolderStore, Outbox):
    """Worker records and messages too: enough for a sweep."""

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        with self._lock():
            self._put(worker_id, body, lease)

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        with self._lock():
            held = self.get_worker(name)
            free = held is None or held.body == holder or held.lease_until <= self.now()
            if free:
                self._put(name, holder, seconds)
            return free

    def get_worker(self, worker_id: str) -> r.WorkerRecord | None:
        return self._workers().get(worker_id)

    def list_workers(self) -> Iterator[r.WorkerRecord]:
        return iter(self._workers().values())

    def drop_worker(self, worker_id: str) -> None:
        with self._lock():
            self._save({name: kept for name, kept in self._workers().items() if name != worker_id})

    def list_open_attempts(self) -> Iterator[r.OpenAttempt]:
        for file in self._files():
            for (tag, row), cell in file.cells.items():
                if cell.held:
                    yield r.OpenAttempt(file.job.ref, tag, row, cell)

    def add_block(self, ref: r.JobRef, first: int, data: bytes, lease: float) -> None:
        with self._lock():
            messages = _messages(self._blocks(ref))
            if first and messages["until"] is None:
                raise draft_expired(ref.key)
            blocks = messages["blocks"] | {str(first): base64.b64encode(data).decode()}
            _replace(self._blocks(ref), {"until": self.now() + round(lease * 1_000_000), "blocks": blocks})

    def get_block(self, ref: r.JobRef, row: int) -> tuple[int, bytes] | None:
        blocks = _messages(self._blocks(ref))["blocks"]
        first = max((first for first in map(int, blocks) if first <= row), default=None)
        return None if first is None else (first, base64.b64decode(blocks[str(first)]))

    def get_value(self, ref: r.JobRef, row: int) -> str | None:
        file = _load(self._path(ref.key))
        return file.values.get(str(row)) if file and file.job.ref == ref else None

    def list_values(self, ref: r.JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        values = self.read(*ref).values
        return iter([(row, value) for row in rows if (value := values.get(str(row))) is not None])

    def accept(self, job: r.JobRecord) -> None:
        """End the draft. Its blocks leak if the process is killed before the job is created."""
        if job.flow is not None:
            messages = _messages(self._blocks(job.ref))
            if messages["until"] is None:
                raise draft_expired(job)
            _replace(self._blocks(job.ref), messages | {"until": None})

    def drop_draft(self, ref: r.JobRef) -> None:
        with self._lock():
            if _messages(self._blocks(ref))["until"] is not None:
                self._blocks(ref).unlink()

    def drop_expired_drafts(self) -> int:
        with self._lock():
            drafts = {path: _messages(path)["until"] for path in self._folder.glob("*.blocks")}
            expired = [path for path, until in drafts.items() if until is not None and until <= self.now()]
            for path in expired:
                path.unlink()
            return len(expired)

    def _workers(self) -> dict[str, r.WorkerRecord]:
        path = self._folder / "workers.json"
        workers = json.loads(path.read_bytes()) if path.exists() else {}
        return {worker_id: r.WorkerRecord(worker_id, *record) for worker_id, record in workers.items()}

    def _put(self, worker_id: str, body: str, lease: float) -> None:
        now, duration = self.now(), round(lease * 1_000_000)
        self._save(self._workers() | {worker_id: r.WorkerRecord(worker_id, body, now, now + duration)})

    def _save(self, workers: dict[str, r.WorkerRecord]) -> None:
        content = {name: (each.body, each.renewed_at, each.lease_until) for name, each in workers.items()}
        _replace(self._folder / "workers.json", content)


class FullFolderStore(SweptFolderStore, FullStore):
    """Migrations too: what ``open_store`` and ``StateManager`` expect."""

    def adopt_job(self, ref: r.JobRef, incarnation: str) -> r.JobRecord:
        with self._lock():
            file = self.read(ref.key)
            if file.job.incarnation == ref.incarnation:
                file.put_job(replace(file.job, incarnation=incarnation, schema_version=0))
                file.save()
            return file.job

    def outdated_cells(self, ref: r.JobRef, below: int) -> Iterator[r.StoredCell]:
        cells = self.read(*ref).cells.items()
        return iter([r.StoredCell(*p, cell, mark_of(cell)) for p, cell in cells if cell.schema_version < below])


def _load(path: Path) -> JobFile | None:
    try:
        return JobFile(path, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"cannot read {path}: {error}") from error


def _messages(path: Path) -> dict[str, Any]:
    """Return the blocks of a job, and the time until which they are a draft: None if the job has been created."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"until": None, "blocks": {}}
    return found


def _replace(path: Path, content: Any) -> None:
    """Write a new file beside the old one and put it in its place, which is one atomic step."""
    try:
        path.with_suffix(".new").write_text(json.dumps(content))
        path.with_suffix(".new").replace(path)
    except OSError as error:
        raise StoreUnavailable(f"cannot write {path}: {error}") from error
