"""Migration of jobs and cells to a later schema: renaming a job's keys, and replacing cells in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import JobNotFound, StoreContended, StoreError
from celery_statemanager.records import CALLBACK_ROW, JobRef, StoredCell
from celery_statemanager.stores.redis.cells import cell_of, repacked
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.stores.redis.layout import JobLayout
from celery_statemanager.stores.redis.reader import JobReader
from celery_statemanager.stores.redis.registry import Registry
from celery_statemanager.stores.redis.scripts import Scripts


def adopt(
    reader: JobReader, registry: Registry, scripts: Scripts, ref: JobRef, incarnation: str, deadline: Deadline
) -> None:
    """Register a job under another incarnation and rename its keys accordingly, unless it has changed already.

    Raises: StoreContended – the job gained a tag during each attempt.
    """
    adopted = JobRef(ref.key, incarnation)
    old, new = (JobKeys(reader.prefix, each) for each in (ref, adopted))
    registry.adopt(adopted)
    while True:
        tags = _read_tags(reader, old)
        pairs = (name for pair in zip(old.every(tags), new.every(tags)) for name in pair)
        try:
            (status,) = reader.run(scripts.adopt, ref, [old.head, *pairs], [incarnation, len(tags)])
        except JobNotFound:
            registry.forget(adopted)
            return
        if status == b"adopted":
            registry.forget(ref)
            return
        deadline.pause(
            StoreError(f"job {ref.key.job_id!r} gained a tag at each attempt to rename its keys; try again"),
            StoreContended,
        )


def list_outdated(reader: JobReader, layout: JobLayout, below: int) -> Iterator[StoredCell]:
    """Yield the cells of a job with an earlier schema than ``below``, column by column."""
    keys = layout.keys
    runs = ((tag.decode(), CALLBACK_ROW, packed) for tag, packed in _scan(reader, keys.callbacks))
    grid = ((tag, int(row), cell) for tag in _read_tags(reader, keys) for row, cell in _scan(reader, keys.cells(tag)))
    for tag, row, packed in chain(runs, grid):
        cell = cell_of(packed)
        if cell.schema_version < below:
            yield StoredCell(tag, row, cell, packed)


def rewrite(reader: JobReader, scripts: Scripts, layout: JobLayout, cells: Sequence[StoredCell]) -> int:
    """Replace the cells that are unchanged since they were read, by one call a column; return their number."""
    columns: dict[tuple[str, str], list[StoredCell]] = {}
    for each in cells:
        key, _ = layout.keys.cell(each.tag, each.task_index)
        columns.setdefault((key, each.tag), []).append(each)
    replaced = 0
    for (key, tag), column in columns.items():
        _, low, _ = layout.keys.column(tag)
        keys = [layout.keys.head, layout.keys.tallies, layout.keys.open, layout.keys.stream, key, low]
        args = [part for each in column for part in _arguments(layout, each)]
        _, count = reader.run(scripts.rewrite, layout.job.ref, keys, [tag, *args])
        replaced += count
    return replaced


def _read_tags(reader: JobReader, keys: JobKeys) -> list[str]:
    return [tag.decode() for tag in reader.server.call("HKEYS", keys.tallies)]


def _scan(reader: JobReader, key: str) -> Iterator[tuple[bytes, bytes]]:
    return chain.from_iterable(reader.server.scan(key))


def _arguments(layout: JobLayout, each: StoredCell) -> Iterator[str | bytes]:
    _, field = layout.keys.cell(each.tag, each.task_index)
    _, _, rank, counts, _ = layout.ranked_cell(each.tag, each.task_index)
    yield str(field)
    yield "1" if rank >= 0 else ""
    yield "1" if rank >= 0 and counts else ""
    yield each.mark
    yield repacked(each.mark, each.cell)
