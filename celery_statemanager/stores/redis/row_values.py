"""What rows keep of their newest finished stages. Small values share the fields of a hash; see lua/row_values.lua."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

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
    values = unpack(shared) if shared is not None else []
    if at < len(values) and isinstance(values[at], str):
        return str(values[at])
    return None if own is None else own.decode()


def pages_of_values(
    reader: JobReader, scripts: Scripts, ref: JobRef, rows: IndexSet
) -> Iterator[list[tuple[int, str]]]:
    """Yield what rows keep, in row order and page by page. Raises: JobNotFound, StoreError."""
    left, is_first = iter(rows), True
    while (page := list(islice(left, _ROWS))) or is_first:
        is_first, (places, texts) = False, _shared(reader, scripts, ref, page)
        if places == page and all(texts) and True not in texts:  # the usual case, in a third of the time
            yield list(zip(page, texts))
        else:
            shared = dict(zip(places, texts))
            yield from _with_large(reader, scripts, ref, {row: shared[row] for row in page if shared.get(row)})


def _with_large(
    reader: JobReader, scripts: Scripts, ref: JobRef, texts: Mapping[int, Any]
) -> Iterator[list[tuple[int, str]]]:
    """Yield values, of which some are large and have fields of their own."""
    rows, large = list(texts), [row for row, text in texts.items() if text is True]
    while rows:
        found = _read(reader, scripts, ref, [str(row) for row in large[:_LARGE]]) if large else []
        own = {row: value and value.decode() for row, value in zip(large, found)}
        end = bisect_left(rows, large[len(found)]) if len(found) < len(large) else len(rows)
        every = ((row, own[row] if row in own else texts[row]) for row in rows[:end])
        yield [(row, text) for row, text in every if text]  # one that was removed meanwhile is None
        rows, large = rows[end:], large[len(found) :]


def _shared(reader: JobReader, scripts: Scripts, ref: JobRef, rows: Sequence[int]) -> tuple[list[int], list[Any]]:
    """Return the rows that share fields with some rows, in order, and for each its small value, true or false."""
    numbers = sorted({row // ROWS_OF_A_FIELD for row in rows})
    fields = _read(reader, scripts, ref, [f"s{number}" for number in numbers])
    firsts = [number * ROWS_OF_A_FIELD for number, field in zip(numbers, fields) if field is not None]
    texts = list(unpack_all(field for field in fields if field is not None))
    places = chain.from_iterable(range(first, first + len(each)) for first, each in zip(firsts, texts))
    return list(places), list(chain.from_iterable(texts))


def _read(reader: JobReader, scripts: Scripts, ref: JobRef, fields: Sequence[str]) -> list[bytes | None]:
    """Return fields of the hash of values: at least the first one, and as many as fit into a page."""
    keys = JobKeys(reader.prefix, ref)
    _, found = reader.run(scripts.values, ref, [keys.head, keys.values], [VALUES_PAGE, *fields])
    return list(found)
