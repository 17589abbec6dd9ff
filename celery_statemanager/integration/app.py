"""``StateManager(app)``: what an application holds of this package."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from celery import Celery, current_task
from celery.canvas import Signature, group

from celery_statemanager.integration import beat, signals
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import TAG_HEADER
from celery_statemanager.integration.installed import at_start, install, tracker_of
from celery_statemanager.integration.locked import LockedProperty
from celery_statemanager.integration.pending_files import PendingFiles
from celery_statemanager.integration.requests import HeldMessages
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.submit import submit
from celery_statemanager.integration.task.errors import interrupting
from celery_statemanager.integration.task.run import run_of
from celery_statemanager.limits import check_name
from celery_statemanager.metrics import Metrics
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import job_key
from celery_statemanager.retention import current, find_job
from celery_statemanager.stores import FullStore, masked, open_store

_installing = threading.Lock()


def _require_store(states: StateManager) -> None:
    """Refuse to start with a store that cannot be used: the worker would fail the tasks that it takes."""
    states.store  # noqa: B018 - making it checks its URL, its options and its client library


class StateManager:
    """Tracks the jobs of one Celery app.

    Making it twice for one app gives the same object. Nothing is read or connected before it is needed.
    """

    app: Celery
    backlog: Backlog
    pending_files: PendingFiles
    held_messages: HeldMessages

    def __new__(cls, app: Celery) -> StateManager:
        """Return the app's StateManager; the first call installs it. Raises: TypeError."""
        if not isinstance(app, Celery):
            raise TypeError(f"StateManager takes a Celery app, not {_name_of(app)}")
        with _installing:
            found = cls.installed(app)
            if found is None:
                found = super().__new__(cls)
                found.app = app
                found.pending_files = PendingFiles(app.main)
                found.backlog = Backlog(found.pending_files)
                found.held_messages = HeldMessages()
                install(app, found)
                beat.install(found)
                at_start(found, _require_store)
                signals.connect()
            return found

    @classmethod
    def installed(cls, app: Celery) -> StateManager | None:
        """Give the app's StateManager if it was installed."""
        found = tracker_of(app)
        return found if isinstance(found, StateManager) else None

    @LockedProperty
    def settings(self) -> Settings:
        """The app's settings. Raises: ConfigurationError."""
        return Settings.from_app(self.app)

    @LockedProperty
    def store(self) -> FullStore:
        """The store of the settings; survives forks. Raises: ConfigurationError."""
        settings = self.settings
        store = open_store(settings.store_url, timeout=settings.store_timeout, **settings.store_options)
        return self.metrics.measured(store)

    @LockedProperty
    def metrics(self) -> Metrics:
        """What measures the app's store, callbacks and sweeps. Raises: ConfigurationError."""
        return find_metrics(wanted=self.settings.metrics)

    def submit(
        self,
        tasks: Iterable[Signature[Any]] | group,
        *,
        job_id: str | UUID | None = None,
        run_token: str | UUID | None = None,
        tags: PlanSpec | None = None,
        on_success: Signature[Any] | None = None,
        on_failure: Signature[Any] | None = None,
        on_settled: Signature[Any] | None = None,
    ) -> Job:
        """Create a job of N rows and publish one message for each; the job exists before the first is sent.

        Args:
            tasks: a list, generator or group of members. Member i is row i: a task signature, or a flat chain
                of them whose tasks share the row, each under its own tag.
            job_id: made up when not given.
            run_token: keeps runs of one job_id apart.
            tags: replaces the plan derived from the members, and must contain it.
            on_success: sent once every expected cell is FINISHED for good. A callback is one task signature; it gets
                the job_id prepended, or nothing if it is immutable, and finds its job with ``states.current_job()``.
            on_failure: sent once the first cell has failed for good.
            on_settled: sent once every expected cell has ended.

        Raises: JobExists, SubmitFailed, ConfigurationError, TypeError, ValueError, StoreError.
        """
        callbacks = {"success": on_success, "failure": on_failure, "settled": on_settled}
        return submit(self, tasks, job_id=job_id, run_token=run_token, tags=tags, callbacks=callbacks)

    def job(self, job_id: str | UUID, run_token: str | UUID | None = None) -> Job:
        """Return a job that was submitted before; a callback uses ``current_job``.

        Raises: JobNotFound – it names the runs of the job_id that exist; TypeError, ValueError, StoreError.
        """
        return Job(self, find_job(self.store, job_key(job_id, run_token)))

    def current_job(self) -> Job | None:
        """Return the job whose task or callback runs here, or None outside of tracked tasks.

        In a callback this is the way to the job: its job_id alone does not name a run. Raises: JobNotFound – the job
        was deleted or replaced by a newer run, and the task is to stop: it is also a Celery ``Ignore``; StoreError.
        """
        run = run_of(current_task)
        if run is None:
            return None
        with interrupting():
            return Job(self, current(self.store, run.binding.ref))

    @staticmethod
    def tag(signature: Signature[Any], tag: str) -> Signature[Any]:
        """Give a copy of a task signature that runs under another tag than its task's own."""
        tagged = signature.clone()
        tagged.options["headers"] = {**(tagged.options.get("headers") or {}), TAG_HEADER: check_name("tag", tag)}
        return tagged


def _name_of(given: Any) -> str:
    """Return the end of a sentence about what is no app; without the password of a URL."""
    if isinstance(given, str):
        return f"the text {masked(given)!r}: pass the app, and set the store's URL as app.conf.statemanager_store_url"
    return f"{given!r:.60}: pass the app that runs the tasks"


def find_metrics(*, wanted: bool) -> Metrics:
    """Give what measures, if it is wanted and ``opentelemetry-api`` is installed; nothing of it is loaded else."""
    if not wanted or importlib.util.find_spec("opentelemetry") is None:
        return Metrics()
    try:
        from celery_statemanager.telemetry import OpenTelemetry
    except ImportError:  # another distribution of the same namespace
        return Metrics()
    return OpenTelemetry()
