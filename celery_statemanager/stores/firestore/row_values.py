"""What rows keep of their newest finished stages: a document for each row, ``values/{row}``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRef
from celery_statemanager.stores.capabilities import VALUES_PAGE
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.jobs import JobDocuments

FIRST_PAGE, LARGEST_PAGE = 8, 256
"""Documents in the first page, and in the largest one. A document may have 1 MB."""


def get_value(database: Database, ref: JobRef, row: int) -> str | None:
    """Return what a row keeps of its newest finished stage."""
    if not ref.incarnation:  # another program's job
        return None
    name = database.names.value(ref, row)
    document = database.get([name], database.deadline()).documents.get(name)
    return None if document is None else str(document.fields["text"])


def pages_of_values(
    database: Database, jobs: JobDocuments, ref: JobRef, rows: IndexSet
) -> Iterator[list[tuple[int, str]]]:
    """Yield what rows keep, in row order and page by page. Raises: JobNotFound."""
    jobs.current(ref, database.deadline())
    left, size = iter(rows if ref.incarnation else ()), FIRST_PAGE
    while page := list(islice(left, size)):
        names = {row: database.names.value(ref, row) for row in page}
        found = database.get(names.values(), database.deadline()).documents
        values = [(row, str(found[name].fields["text"])) for row, name in names.items() if name in found]
        yield values
        average = 1 + sum(len(text) for _, text in values) // len(page)
        size = max(1, min(2 * size, LARGEST_PAGE, VALUES_PAGE // average))
