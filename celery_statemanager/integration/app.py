"""``StateManager(app)``: the entry point of this package in a Celery application."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import Celery, current_task
from celery.canvas import Signature, group

from celery_statemanager.awaiting import in_thread
from celery_statemanager.errors import ConfigurationError, install_hint
from celery_statemanager.integration import beat, signals, spawned, stalling
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import TAG_HEADER
from celery_statemanager.integration.installed import at_start, install, tracker_of
from celery_statemanager.integration.locked import LockedProperty
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.integration.pending_files import PendingFiles
from celery_statemanager.integration.requests import HeldMessages
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.listing import JobPage, list_jobs
from celery_statemanager.integration.submission.submit import submit
from celery_statemanager.integration.task.errors import interrupting
from celery_statemanager.integration.task.running import serving
from celery_statemanager.integration.worker.step import TrackingStep
from celery_statemanager.limits import check_name
from celery_statemanager.metrics import Metrics
from celery_statemanager.plan import PlanSpec
from celery_statemanager.policies import PolicySpec
from celery_statemanager.records import job_key
from celery_statemanager.retention import current, find_job
from celery_statemanager.stores import FullStore, masked, open_store

_installing = threading.Lock()


def _require_store(states: StateManager) -> None:
    """Raise ``ConfigurationError`` if the store cannot be used, so that a worker ends before it receives tasks."""
    states.store  # noqa: B018 - its creation checks the URL, the options and the client library


class StateManager:
    """Tracks the jobs of one Celery app.

    There is one for each app: further calls with the same app return it. It reads the settings and connects to the
    store on first use.
    """

    app: Celery
    backlog: Backlog
    pending_files: PendingFiles
    moving_files: PendingFiles
    blocks: BlockCache
    held_messages: HeldMessages

    def __new__(cls, app: Celery) -> StateManager:
        """Return the app's StateManager; the first call installs it. Raises: TypeError."""
        if not isinstance(app, Celery):
            raise TypeError(f"StateManager takes a Celery app, not {_describe(app)}")
        with _installing:
            found = cls.installed(app)
            if found is None:
                found = super().__new__(cls)
                found.app = app
                found.pending_files = PendingFiles(app.main)
                found.moving_files = PendingFiles(app.main, "moving")
                found.backlog = Backlog(found.pending_files)
                found.blocks = BlockCache()
                found.held_messages = HeldMessages()
                install(app, found)
                spawned.follow(app)
                beat.install(found)
                at_start(found, _require_store)
                app.steps["consumer"].add(TrackingStep)
                signals.connect()
            return found

    @classmethod
    def installed(cls, app: Celery) -> StateManager | None:
        """Return the app's StateManager, or None if it has none."""
        found = tracker_of(app)
        return found if isinstance(found, StateManager) else None

    @LockedProperty
    def settings(self) -> Settings:
        """The app's settings. Raises: ConfigurationError."""
        return Settings.from_app(self.app)

    @LockedProperty
    def store(self) -> FullStore:
        """The store, which may be used after a fork. Raises: ConfigurationError."""
        settings = self.settings
        store = open_store(settings.store_url, timeout=settings.store_timeout, **settings.store_options)
        self._opened = self.metrics.measured(store)
        return self._opened

    def open_own_store(self) -> FullStore:
        """Open the store again. A store in memory, or one that was assigned, cannot be opened again: return it.

        Raises: ConfigurationError.
        """
        settings = self.settings
        if settings.store_url.startswith("memory:") or self.store is not vars(self).get("_opened"):
            return self.store
        return open_store(settings.store_url, timeout=settings.store_timeout, **settings.store_options)

    @LockedProperty
    def metrics(self) -> Metrics:
        """The metrics of the app's store, callbacks and sweeps. Raises: ConfigurationError."""
        return find_metrics(wanted=self.settings.metrics)

    def submit(
        self,
        tasks: Iterable[Signature[Any]] | group | Signature[Any],
        *,
        job_id: str | UUID | None = None,
        run_token: str | UUID | None = None,
        tags: PlanSpec | None = None,
        on_success: Signature[Any] | None = None,
        on_failure: Signature[Any] | None = None,
        on_settled: Signature[Any] | None = None,
        max_in_flight: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        results: bool = False,
        max_failed: int | str | None = None,
        deadline: float | datetime | None = None,
        stall_after: float | None = None,
        on_stall: str | None = None,
        using: str | None = None,
    ) -> Job:
        """Create a job of N rows, and publish one message for each.

        The messages are stored with the job. From the return of this method on, each of them is published, even if this
        process, a worker or the broker fails.

        Args:
            tasks: a list, generator or group of members. Member i is row i: a task signature, or a flat chain of
                signatures that share the row, each under its own tag. Or a chord: its header has the members. Its body,
                a task signature or a flat chain, takes the place of ``on_success`` and gets the list of results.
            job_id: the name of the job; random if not given.
            run_token: distinguishes runs of one job_id.
            tags: replaces the plan derived from the members, and must contain it.
            on_success: a callback sent when every expected cell is final and FINISHED. A callback is one task
                signature. The job_id is prepended to its arguments, unless it is immutable. It finds its job with
                ``states.current_job()``.
            on_failure: a callback sent when the first cell has failed finally or, with ``max_failed``, when too many
                rows have failed.
            on_settled: a callback sent when every expected cell is final.
            max_in_flight: the maximum number of rows that are with the broker or running. The others are published as
                rows end. None publishes all rows before this method returns.
            metadata: a JSON object of up to 4 KiB that is stored with the job, for example ``{"owner": "ada", "title":
                "Catalogue"}``; see ``Job.metadata`` and ``jobs``.
            results: whether the job keeps what the last task of each row returns, for ``Job.results`` and ``Job.get``.
                Rows whose last task has ``keep_result`` keep it anyway.
            max_failed: the number of failed rows that are tolerated, or a percentage of all rows such as ``"2%"``,
                rounded down. If more rows fail, the job is cancelled, and ``on_failure`` is sent. Otherwise
                ``on_success`` is sent when all rows have ended. None cancels nothing and tolerates no failure.
            deadline: seconds, or a datetime with a time zone. If the job has not settled by then, it is cancelled.
            stall_after: the seconds after which a running task that has written no state counts as stalled, for all
                tasks of the job. None leaves that to the attribute ``stall_after`` of each task.
            on_stall: ``"report"`` marks the state of a stalled task. ``"stop"`` also lets its next write raise
                ``TaskStalled``, which ends it as TIMED_OUT. None leaves that to the attribute ``on_stall`` of each
                task, ``"report"`` by default.
            using: the alias of a database of Django. Inside ``transaction.atomic()`` on it, the job is created and
                published with the commit, and never after a rollback. Until then, methods of the returned job that use
                the store raise ``JobNotCommitted``. If the states are kept in this database (``django://alias``), the
                job is part of the transaction, and is published even if the process dies after the commit. Otherwise,
                and in eager mode, the job is created after the commit. Outside of a transaction, ``using`` has no
                effect.

        Raises: JobExists, SubmitFailed, ConfigurationError, TypeError, ValueError, StoreError.
        """
        return submit(
            self,
            tasks,
            job_id,
            run_token,
            using,
            tags=tags,
            callbacks={"success": on_success, "failure": on_failure, "settled": on_settled},
            max_in_flight=max_in_flight,
            policy=PolicySpec.parse(max_failed, deadline, lambda: self.store.now()),
            metadata=metadata,
            results=results,
            stall=stalling.check(stall_after, on_stall, self.settings.progress_interval),
        )

    def job(self, job_id: str | UUID, run_token: str | UUID | None = None) -> Job:
        """Return a submitted job. In a callback use ``current_job``.

        Raises: JobNotFound – with the existing runs of the job_id; TypeError, ValueError, StoreError.
        """
        return Job(self, find_job(self.store, job_key(job_id, run_token)))

    async def asubmit(self, tasks: Iterable[Signature[Any]] | group, **options: Any) -> Job:
        """Create a job as ``submit`` does, with the same options except ``using``, without blocking the event loop.

        Transactions of Django belong to threads. To join one, call ``submit`` in a function for ``sync_to_async``.
        """
        if options.get("using") is not None:
            raise TypeError("asubmit runs in another thread, so it cannot join a transaction: call submit(using=…)")
        return await in_thread(self.submit, tasks, **options)

    async def ajob(self, job_id: str | UUID, run_token: str | UUID | None = None) -> Job:
        """Return a submitted job as ``job`` does, without blocking the event loop."""
        return await in_thread(self.job, job_id, run_token)

    def jobs(
        self, text: str | None = None, phase: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> JobPage:
        """Return a page of jobs, the newest first, without those that are marked deleted.

        The cost is that of a page, not of all jobs. A page with ``text`` or ``phase`` examines at most 1,000 jobs, so
        it may be short or empty although its cursor is not None. Jobs that are created or deleted meanwhile do not make
        the next pages skip or repeat other jobs.

        Args:
            text: only jobs whose id, run token, ``metadata["owner"]`` or ``metadata["title"]`` contains it, ignoring
                case.
            phase: only jobs in this phase, see ``Job.phase``. Cells of jobs that have not settled are counted for it.
            limit: the maximum number of jobs, 1 … 1,000.
            cursor: ``JobPage.cursor`` of the previous page.

        Raises: TypeError, ValueError, ConfigurationError, StoreError.
        """
        return list_jobs(self, text, phase, limit, cursor)

    def web(self, authorize: Callable[..., Any], *, origins: Iterable[str] = ()) -> Any:
        """Create an ASGI application with pages, JSON and live events of the jobs, to be mounted in another one.

        Args:
            authorize: a function ``(request, action, job)``, also an async one, that returns whether a Starlette
                request is allowed. The actions are ``list`` without a job, and ``view``, ``cancel``, ``pause`` and
                ``rerun`` with a ``Job``. It is asked ``view`` for each job of a list.
            origins: origins of pages that may change jobs, such as ``https://example.com``, if a proxy replaces the
                header ``Host``.

        Raises: ConfigurationError – the extra ``web`` is not installed, or a setting is invalid; TypeError; ValueError.
        """
        return _web().web_app(self, authorize, origins=origins)

    def web_wsgi(self, authorize: Callable[..., Any], *, origins: Iterable[str] = ()) -> Any:
        """Create the same as a WSGI application. It has no events, so pages poll.

        Raises: as ``web``.
        """
        return _web().wsgi_app(self, authorize, origins=origins)

    def web_token(
        self,
        job_id: str | UUID | Job,
        run_token: str | UUID | None = None,
        expires: float = 3_600,
        actions: Iterable[str] = ("view",),
    ) -> str:
        """Return a signed text that allows some actions on one incarnation of a job: ``…/jobs/etl-42?token=…``.

        Args:
            job_id: the name of the job, or the job itself, which need not be committed yet.
            expires: seconds for which it is valid, at most 366 days.
            actions: of ``view``, ``cancel``, ``pause`` and ``rerun``.

        Raises: JobNotFound, ConfigurationError, TypeError, ValueError, StoreError.
        """
        record = job_id._submitted if isinstance(job_id, Job) else find_job(self.store, job_key(job_id, run_token))
        token: str = _web().web_token(self, record, expires, actions)
        return token

    def current_job(self) -> Job | None:
        """Return the job of the current task or callback, or None outside of this app's tracked tasks.

        Callbacks get only the job_id, which does not identify a run; this method returns their own run.

        Raises: JobNotFound – the job was deleted or replaced by a newer run; in a task, the error is also Celery's
            ``Ignore`` and stops it; StoreError.
        """
        run = serving(current_task)
        if run is None or run.tracker is not self:
            return None
        with interrupting():
            return Job(self, current(self.store, run.binding.ref))

    @staticmethod
    def tag(signature: Signature[Any], tag: str) -> Signature[Any]:
        """Return a copy of a task signature that runs under another tag than that of its task."""
        tagged = signature.clone()
        tagged.options["headers"] = {**(tagged.options.get("headers") or {}), TAG_HEADER: check_name("tag", tag)}
        return tagged


def _web() -> Any:
    """Import the web, a floor above this one that few processes use. Raises: ConfigurationError."""
    try:
        return importlib.import_module("celery_statemanager.web")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"a2wsgi", "itsdangerous", "starlette"}:
            raise
        raise ConfigurationError(f"the web needs the package {error.name}: {install_hint('web')}") from error


def _describe(given: Any) -> str:
    """Return the part of an error message about an argument that is not an app, without the password of a URL."""
    if isinstance(given, str):
        return f"the text {masked(given)!r}: pass the app, and set the store's URL as app.conf.statemanager_store_url"
    return f"an object of type {type(given).__name__}: pass the app that runs the tasks"


def find_metrics(*, wanted: bool) -> Metrics:
    """Return OpenTelemetry metrics if they are wanted and can be imported, else metrics without effect."""
    if not wanted or importlib.util.find_spec("opentelemetry") is None:
        return Metrics()
    try:
        from celery_statemanager.telemetry import OpenTelemetry
    except ImportError:  # the namespace package of another distribution
        return Metrics()
    return OpenTelemetry()
