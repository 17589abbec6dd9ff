"""The context of all handlers of one application: the StateManager, access, and the parameters of requests."""

from __future__ import annotations

import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from celery_statemanager.errors import JobNotFound
from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.limits import short_repr
from celery_statemanager.overview import look_alikes
from celery_statemanager.records import JobKey, job_key
from celery_statemanager.retention import find_job
from celery_statemanager.stores import FullStore
from celery_statemanager.web.access import Access
from celery_statemanager.web.coalescing import SharedReads
from celery_statemanager.web.errors import WebError, bad_request
from celery_statemanager.web.paths import name_of
from celery_statemanager.web.sealing import Sealer


class Site:
    """The StateManager of an application, its access checks, and the sealer of the cursors of its lists.

    Attributes:
        grids: the reads of grids that requests share.
    """

    def __init__(self, states: StateManager, access: Access, cursors: Sealer) -> None:
        self.states = states
        self.access = access
        self.cursors = cursors
        self.grids = SharedReads()

    @property
    def store(self) -> FullStore:
        """The store. Its first use checks the settings. Raises: ConfigurationError."""
        return self.states.store

    async def find(self, request: Request, action: str = "view") -> Job:
        """Return the job that a request names, if it may do the action.

        Raises: WebError – an invalid name, no such job, or not allowed; StoreError; ConfigurationError.
        """
        try:
            key = job_key(name_of(request.path_params["job_id"]), request.query_params.get("run_token"))
        except ValueError as error:
            raise bad_request(error, "name") from None
        try:
            job = await run_in_threadpool(lambda: Job(self.states, find_job(self.store, key)))
        except JobNotFound:
            raise await self._not_found(request, key) from None
        await self.access.require(request, action, job)
        return job

    async def _not_found(self, request: Request, key: JobKey) -> WebError:
        """Return the error for an unknown job, which names similar jobs that the request may view."""
        similar: list[Job] = []
        if (await self.access.allowed(request, [("list", None)]))[0]:
            similar = await self.access.viewable(request, await run_in_threadpool(self._similar_jobs, key))
        message = str(JobNotFound(*key))
        if similar:
            names = ", ".join(short_repr(each.id) + _run(each) for each in similar)
            message = f"{message.partition(':')[0]}; similar: {names}"
        nearest = [{"jobID": each.id, "runToken": each.run_token} for each in similar]
        return WebError(404, "no_job", message, nearest=nearest)

    def _similar_jobs(self, key: JobKey) -> list[Job]:
        found = []
        for each in look_alikes(self.store, key):
            try:
                found.append(Job(self.states, self.store.get_job(each)))
            except JobNotFound:
                continue
        return found


def _run(job: Job) -> str:
    return "" if job.run_token is None else f" (run token {short_repr(job.run_token)})"


def number_in(request: Request, name: str, default: int, most: int, least: int = 1) -> int:
    """Return a whole number from the query of a request, ``least`` to ``most``. Raises: WebError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise bad_request(f"{name} must be a whole number, {least} … {most}, not {short_repr(text)}")
    return int(text)
