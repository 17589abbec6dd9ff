"""Live and lasting state of a job's N Celery tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from celery_statemanager.errors import (
    AttemptSuperseded,
    BeginRefused,
    ConfigurationError,
    JobCancelled,
    JobExists,
    JobNotFound,
    ReadOnlyManager,
    StateError,
    StateManagerError,
    StoreError,
    StoreUnavailable,
    SubmitFailed,
    SubscriptionLost,
    SynchronizeFailed,
    SynchronizeTimeout,
    TaskMismatch,
    WaitTimeout,
)
from celery_statemanager.indexset import IndexSet
from celery_statemanager.manager import Manager
from celery_statemanager.models import State, StateEvent, Status, Summary
from celery_statemanager.stores import open_store
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription

if TYPE_CHECKING:
    from celery_statemanager.integration.extension import StateManager
    from celery_statemanager.integration.job import Job
    from celery_statemanager.integration.task import StatefulTask, current_state

__all__ = (
    # Core
    "Manager", "State", "StateEvent", "Status", "Summary", "IndexSet", "Subscription", "Store", "open_store",
    # Celery
    "StateManager", "StatefulTask", "Job", "current_state",
    # Errors
    "StateManagerError", "ConfigurationError", "JobExists", "JobNotFound", "TaskMismatch", "ReadOnlyManager",
    "BeginRefused", "AttemptSuperseded", "JobCancelled", "StateError", "SynchronizeFailed", "SynchronizeTimeout",
    "WaitTimeout", "SubscriptionLost", "SubmitFailed", "StoreError", "StoreUnavailable",
)  # fmt: skip

_CELERY_NAMES = {
    "StateManager": "celery_statemanager.integration.extension",
    "StatefulTask": "celery_statemanager.integration.task",
    "Job": "celery_statemanager.integration.job",
    "current_state": "celery_statemanager.integration.task",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("celery-statemanager")
    if name in _CELERY_NAMES:
        return getattr(importlib.import_module(_CELERY_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
