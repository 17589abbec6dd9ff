"""Track how far each of a job's N Celery tasks has got, live and durably.

Each public name is imported on first access, so the package itself loads neither Celery nor a store's client.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_statemanager.errors import (
        AttemptSuperseded,
        BeginRefused,
        ConfigurationError,
        JobCancelled,
        JobExists,
        JobNotCommitted,
        JobNotFound,
        ReadOnlyManager,
        ResultUnavailable,
        StateError,
        StateManagerError,
        StoreContended,
        StoreError,
        StoreUnavailable,
        SubmitFailed,
        SubscriptionLost,
        SynchronizeFailed,
        SynchronizeTimeout,
        TaskFailed,
        TaskMismatch,
        TaskStalled,
        WaitTimeout,
    )
    from celery_statemanager.garbage import collect_garbage
    from celery_statemanager.indexset import IndexSet
    from celery_statemanager.integration.app import StateManager
    from celery_statemanager.integration.submission.job import Job
    from celery_statemanager.integration.submission.listing import JobPage
    from celery_statemanager.integration.task.base import StatefulTask, current_state
    from celery_statemanager.manager import Manager
    from celery_statemanager.migrations import migrate_jobs
    from celery_statemanager.models import State, StateEvent, Status, Summary
    from celery_statemanager.stores import open_store
    from celery_statemanager.stores.base import Store
    from celery_statemanager.subscription import Subscription

__all__ = (
    # Core
    "Manager", "State", "StateEvent", "Status", "Summary", "IndexSet", "Subscription", "Store", "open_store",
    "collect_garbage", "migrate_jobs",
    # Celery
    "StateManager", "StatefulTask", "Job", "JobPage", "current_state",
    # Errors
    "StateManagerError", "ConfigurationError", "JobExists", "JobNotFound", "JobNotCommitted", "TaskMismatch",
    "ReadOnlyManager", "BeginRefused", "AttemptSuperseded", "JobCancelled", "TaskStalled", "StateError",
    "SynchronizeFailed", "SynchronizeTimeout", "WaitTimeout", "SubscriptionLost", "SubmitFailed", "StoreError",
    "StoreUnavailable", "StoreContended", "TaskFailed", "ResultUnavailable",
)  # fmt: skip

if not hasattr(os, "register_at_fork"):
    raise ImportError(
        "celery-statemanager runs on Linux and macOS, not on Windows, which Celery does not support either: use WSL"
    )

_MODULES = {
    "IndexSet": "indexset",
    "Job": "integration.submission.job",
    "JobPage": "integration.submission.listing",
    "Manager": "manager",
    "State": "models",
    "StateEvent": "models",
    "StateManager": "integration.app",
    "StatefulTask": "integration.task.base",
    "Status": "models",
    "Store": "stores.base",
    "Subscription": "subscription",
    "Summary": "models",
    "collect_garbage": "garbage",
    "current_state": "integration.task.base",
    "migrate_jobs": "migrations",
    "open_store": "stores",
}
"""Module of each public name. Names that are not listed here are in ``errors``."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("celery-statemanager")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
