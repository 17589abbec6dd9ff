"""Periodic tasks: registered with the app, and scheduled by beat as the settings say.

Beat and every worker also sweep without a task (``worker.sweeping``): it could wait in the queue whose workers died.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from celery import Task

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.garbage import collect_garbage
from celery_statemanager.integration.installed import Tracker, at_start, tracker_of
from celery_statemanager.integration.settings import PREFIX
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.migrations import migrate_jobs

logger = logging.getLogger(__name__)

COLLECT = "celery_statemanager.collect_garbage"
SWEEP = "celery_statemanager.sweep"
MIGRATE = "celery_statemanager.migrate_jobs"

MAX_EXPIRES = 3_600.0
"""The longest time in seconds after which a message that no worker took expires: the next one follows soon."""


def install(tracker: Tracker) -> None:
    """Register the tasks with the app, and add their entries to its schedule before beat reads it.

    A spawned child shares them with all its apps, so each uses the tracker of the app that runs it.
    """
    for name, function in {COLLECT: _collect, SWEEP: _sweep, MIGRATE: _migrate}.items():
        tracker.app.task(name=name, ignore_result=True, shared=False, bind=True)(function)
    at_start(tracker, _add_entries)


def _tracker(task: Task[Any, Any]) -> Tracker:
    tracker = tracker_of(task.app)
    if tracker is None:
        raise ConfigurationError(f"app {task.app.main!r} has no StateManager: call StateManager(app) in its module")
    return tracker


def _add_entries(tracker: Tracker) -> None:
    """Add the entries that the settings ask for; keep an entry of the app under the same name."""
    conf, settings = tracker.app.conf, tracker.settings
    migrate_when = None if settings.migrate_target is None else settings.migrate_schedule
    wanted = {COLLECT: settings.gc_schedule, SWEEP: settings.sweep_schedule, MIGRATE: migrate_when}
    entries = {task: _entry(task, when) for task, when in wanted.items() if when is not None}
    for task, entry in entries.items():
        conf.beat_schedule.setdefault(task, entry)  # in place, as Celery does: 5.6 cannot replace a namespaced setting


def _entry(task: str, when: Any) -> dict[str, Any]:
    """Return an entry whose message expires when the next one is sent."""
    seconds = when.total_seconds() if isinstance(when, timedelta) else when
    expires = min(seconds, MAX_EXPIRES) if isinstance(seconds, (int, float)) else MAX_EXPIRES
    return {"task": task, "schedule": when, "options": {"expires": expires}}


def _sweep(task: Task[Any, Any]) -> dict[str, Any]:
    return asdict(sweep(_tracker(task)))


def _migrate(task: Task[Any, Any]) -> dict[str, Any]:
    """Migrate, except jobs of other programs: only an operator can confirm that these no longer write."""
    tracker = _tracker(task)
    migrated = migrate_jobs(tracker.store, tracker.settings.migrate_target, foreign=False)
    if migrated:
        logger.info("migrated: %s", migrated)
    return asdict(migrated)


def _collect(task: Task[Any, Any]) -> dict[str, Any]:
    tracker = _tracker(task)
    settings = tracker.settings
    if settings.gc_tombstone_age is None:
        raise ConfigurationError(
            f"{COLLECT} needs {PREFIX}gc_tombstone_age and {PREFIX}gc_delete_age: set both, such as '30d' and '90d'"
        )
    collected = collect_garbage(
        tracker.store, tombstone_age=settings.gc_tombstone_age, delete_age=settings.gc_delete_age
    )
    if collected:
        logger.info("garbage collected: %s", collected)
    return asdict(collected)
