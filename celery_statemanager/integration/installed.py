"""The link from a Celery app to its ``StateManager``: signal handlers find it here without importing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from celery import Celery
from celery.signals import import_modules

from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.integration.pending_files import PendingFiles
from celery_statemanager.integration.requests import HeldMessages
from celery_statemanager.integration.settings import Settings
from celery_statemanager.metrics import Metrics
from celery_statemanager.stores import FullStore


class Tracker(Protocol):
    """The part of a ``StateManager`` that the handlers need."""

    @property
    def app(self) -> Celery:
        """The tracked app."""

    @property
    def settings(self) -> Settings:
        """The settings of the app."""

    @property
    def store(self) -> FullStore:
        """The store of the app."""

    def open_own_store(self) -> FullStore:
        """Return a store on the same data whose connections and locks are its own, if the data allow it."""

    @property
    def metrics(self) -> Metrics:
        """The metrics of the app."""

    @property
    def backlog(self) -> Backlog:
        """The writes of this process that wait for the store."""

    @property
    def pending_files(self) -> PendingFiles:
        """The files by which a worker's children report these writes to its main process."""

    @property
    def moving_files(self) -> PendingFiles:
        """The files by which a worker's children report which of their bodies wait in a barrier."""

    @property
    def blocks(self) -> BlockCache:
        """The stored messages that this process has used last."""

    @property
    def held_messages(self) -> HeldMessages:
        """The messages that this worker's main process holds."""


AnyTracker = TypeVar("AnyTracker", bound=Tracker)

_ATTRIBUTE = "_celery_statemanager"

_trackers: weakref.WeakSet[Any] = weakref.WeakSet()


def install(app: Celery, tracker: Tracker) -> None:
    """Set the tracker of an app; the two are garbage-collected together."""
    setattr(app, _ATTRIBUTE, tracker)
    _trackers.add(tracker)


def all_trackers() -> list[Any]:
    """Return the trackers of this process."""
    return list(_trackers)


def tracker_of(app: Celery) -> Tracker | None:
    """Return the tracker of an app; None for an app without one."""
    return getattr(app, _ATTRIBUTE, None)


def at_start(tracker: AnyTracker, action: Callable[[AnyTracker], object]) -> None:
    """Call ``action`` with the tracker when a worker or beat of its app starts; an error that it raises ends them."""
    reference = weakref.ref(tracker)  # the signal must not prevent garbage collection of the app

    def act(**_: Any) -> None:
        alive = reference()
        if alive is not None:
            action(alive)

    import_modules.connect(act, sender=tracker.app, weak=False)
