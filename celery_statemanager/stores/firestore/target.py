"""The documents that a watch is about: a job, and the cells of a scope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_statemanager.models import Scope
from celery_statemanager.records import JobRef
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.listing import filters_of


class Target:
    """What a stream is asked for, or a poll reads."""

    def __init__(self, database: Database, ref: JobRef, scope: Scope) -> None:
        self.job = database.names.job(ref.key)
        self._database = database
        self._one: list[str] = []
        self._filters: tuple[requests.Filter, ...] | None = None
        if scope.task_index is not None and scope.task_index < 0:
            return
        if scope.tag is not None and scope.task_index is not None:
            self._one = [database.names.cell(ref, scope.tag, scope.task_index)]
        else:
            self._filters = filters_of(self.job, scope)

    def requests(self, since: Any) -> list[Any]:
        """Give the requests that open a stream of what changed since a moment."""
        path, made = self._database.path, []
        if self._filters is not None:
            query = requests.select("states", *self._filters)
            made.append(requests.listen(path, 1, query_in=(self.job, query), names=(), since=since))
        names = [self.job, *self._one]
        return [*made, requests.listen(path, 2, query_in=None, names=names, since=since)]

    def documents(self) -> tuple[Iterator[Found], Any]:
        """Read them all, as of one moment. Raises: StoreError."""
        got = self._database.get([self.job, *self._one], self._database.deadline())
        return self._found(got.documents, got.at), got.at

    def _found(self, documents: dict[str, Found], at: Any) -> Iterator[Found]:
        yield from documents.values()
        if self._filters is not None and self.job in documents:
            yield from self._database.pages(self.job, "states", *self._filters, at=at)
