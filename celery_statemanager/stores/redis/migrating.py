"""Jobs and cells that are brought to a later layout: another incarnation's keys, cells replaced as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import JobNotFound, StoreContended, StoreError
from celery_statemanager.records import CALLBACK_ROW, JobRef, StoredCell
from celery_statemanager.stores.redis.cells import cell_of, repacked
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.reader import Reader
from celery_statemanager.stores.redis.registry import Registry
from celery_statemanager.stores.redis.scripts import Scripts


def adopt(
    reader: Reader, registry: Registry, scripts: Scripts, ref: JobRef, incarnation: str, deadline: Deadline
) -> None:
    """Rename a job's keys after another incarnation, if it is still this one; the registry is told before.

    Raises: StoreContended – the job gained a tag at each try.
    """
    adopted = JobRef(ref.key, incarnation)
    old, new = (JobKeys(reader.prefix, each) for each in (ref, adopted))
    registry.adopt(adopted)
    while True:
        tags = seen(reader, old)
        pairs = (name for pair in zip(old.every(tags), new.every(tags)) for name in pair)
        try:
            (word,) = reader.run(scripts.adopt, ref, [old.head, *pairs], [incarnation, len(tags)])
        except JobNotFound:
            registry.forget(adopted)
            return
        if word == b"adopted":
            registry.forget(ref)
            return
        deadline.pause(StoreError(f"job {ref.key.job_id!r} gained a tag at each try"), StoreContended)


def outdated(reader: Reader, layout: Layout, below: int) -> Iterator[StoredCell]:
    """Give the cells of an earlier layout, column by column."""
    keys = layout.keys
    for name, packed in _scanned(reader, keys.callbacks):
        yield from _if_below(below, name.decode(), CALLBACK_ROW, packed)
    for tag in seen(reader, keys):
        for row, packed in _scanned(reader, keys.cells(tag)):
            yield from _if_below(below, tag, int(row), packed)


def rewrite(reader: Reader, scripts: Scripts, layout: Layout, cells: Sequence[StoredCell]) -> int:
    """Replace cells that are still as they were found; one call a column."""
    columns: dict[tuple[str, str], list[StoredCell]] = {}
    for each in cells:
        key, _ = layout.keys.cell(each.tag, each.task_index)
        columns.setdefault((key, each.tag), []).append(each)
    replaced = 0
    for (key, tag), found in columns.items():
        _, low, _ = layout.keys.column(tag)
        keys = [layout.keys.head, layout.keys.tallies, layout.keys.open, layout.keys.stream, key, low]
        args = [part for each in found for part in _arguments(layout, each)]
        _, count = reader.run(scripts.rewrite, layout.job.ref, keys, [tag, *args])
        replaced += count
    return replaced


def seen(reader: Reader, keys: JobKeys) -> list[str]:
    """Give the tags that a job has seen."""
    return [tag.decode() for tag in reader.server.call("HKEYS", keys.tallies)]


def _scanned(reader: Reader, key: str) -> Iterator[tuple[bytes, bytes]]:
    return chain.from_iterable(reader.server.scan(key))


def _if_below(below: int, tag: str, row: int, packed: bytes) -> Iterable[StoredCell]:
    cell = cell_of(packed)
    return [StoredCell(tag, row, cell, packed)] if cell.schema_version < below else []


def _arguments(layout: Layout, each: StoredCell) -> Iterator[str | bytes]:
    _, field = layout.keys.cell(each.tag, each.task_index)
    _, _, rank, counts = layout.place(each.tag, each.task_index)
    yield str(field)
    yield "1" if rank >= 0 else ""
    yield "1" if rank >= 0 and counts else ""
    yield each.mark
    yield repacked(each.mark, each.cell)
