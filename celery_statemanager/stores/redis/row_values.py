"""What rows keep of their newest finished stages. Small values share the fields of a hash; see lua/row_values.lua."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRef
from celery_statemanager.stores.capabilities import VALUES_PAGE
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.stores.redis.packing import unpack, unpack_all
from celery_statemanager.stores.redis.reader import JobReader
from celery_statemanager.stores.redis.scripts import ROWS_OF_A_FIELD, Scripts

_ROWS, _LARGE = 2_048, 256
"""Rows whose small values are read at once, and those whose large values are."""


def get_value(reader: JobReader, scripts: Scripts, ref: JobRef, row: int) -> str | None:
    """Return what a row keeps of its newest finished stage. Raises: StoreError if a stored job has lost its values."""
    number, at = divmod(row, ROWS_OF_A_FIELD)
    try:
        shared, own = _read(reader, scripts, ref, [f"s{number}", str(row)])
    except JobNotFound:
        return None
    if own is not None:
        return own.decode()
    texts = unpack(shared) if shared is not None else []
    return texts[at] or None if at < len(texts) else None


def pages_of_values(
    reader: JobReader, scripts: Scripts, ref: JobRef, rows: IndexSet
) -> Iterator[list[tuple[int, str]]]:
    """Yield what rows keep, in row order and page by page. Raises: JobNotFound, StoreError."""
    left, is_first = iter(rows), True
    while (page := list(islice(left, _ROWS))) or is_first:
        is_first, small = False, _small(reader, scripts, ref, page)
        while page:
            others = [row for row in page if row not in small]
            found = _read(reader, scripts, ref, [str(row) for row in others[:_LARGE]]) if others else []
            large = {row: value.decode() for row, value in zip(others, found) if value is not None}
            end = bisect_left(page, others[len(found)]) if len(found) < len(others) else len(page)
            yield [(row, text) for row in page[:end] if (text := small.get(row) or large.get(row))]
            page = page[end:]


def _small(reader: JobReader, scripts: Scripts, ref: JobRef, rows: Sequence[int]) -> dict[int, str]:
    """Return the small values of some rows, and those of others in the same fields."""
    numbers = sorted({row // ROWS_OF_A_FIELD for row in rows})
    found = _read(reader, scripts, ref, [f"s{number}" for number in numbers])
    packed = {number: field for number, field in zip(numbers, found) if field is not None}
    return {
        row: text
        for number, texts in zip(packed, unpack_all(packed.values()))
        for row, text in enumerate(texts, number * ROWS_OF_A_FIELD)
        if text
    }


def _read(reader: JobReader, scripts: Scripts, ref: JobRef, fields: Sequence[str]) -> list[bytes | None]:
    """Return fields of the hash of values: at least the first one, and as many as fit into a page."""
    keys = JobKeys(reader.prefix, ref)
    _, found = reader.run(scripts.values, ref, [keys.head, keys.values], [VALUES_PAGE, *fields])
    return list(found)
