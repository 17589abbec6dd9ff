"""Copies of an app. A child that a worker spawns is a fresh interpreter, to which the worker's app is pickled.

The child imports the project's modules later, and they create another app object.
"""

from __future__ import annotations

import weakref
from typing import Any

from celery import Celery

from celery_statemanager.integration.installed import Tracker, all_trackers, install, tracker_of
from celery_statemanager.integration.settings import PREFIX

FIXUP = f"{__name__}:restore"
"""The name of ``restore`` among the fixups of an app: Celery pickles them and applies them to each copy."""

_copies: weakref.WeakSet[Celery] = weakref.WeakSet()


def follow(app: Celery) -> None:
    """Add a ``StateManager`` to each copy of an app."""
    fixups: Any = app.fixups  # type: ignore[attr-defined] # incomplete stubs
    if FIXUP not in fixups:
        app.fixups = [*fixups, FIXUP]  # type: ignore[attr-defined]


def restore(copy: Celery) -> Tracker:
    """Return a new ``StateManager`` of a copy of an app; Celery calls it when it creates the copy."""
    from celery_statemanager.integration.app import StateManager  # which imports this module

    _copies.add(copy)
    return StateManager(copy)


def adopt_originals(**_: Any) -> None:
    """Replace the StateManagers of copies by those that the project's modules have created, before the first task.

    A module may have assigned another store to its own, and compares it to that of the running task.
    """
    for copy in list(_copies):
        original = _original_of(copy)
        if original is not None:
            original.app = copy
            vars(original).pop("settings", None)  # only the main process may have changed some
            install(copy, original)
            _copies.discard(copy)


def _original_of(copy: Celery) -> Any | None:
    """Return the ``StateManager`` of the app that was copied; None if no module, or more than one, has created it."""
    restored = tracker_of(copy)
    found = [each for each in all_trackers() if each.app not in _copies and each.app.main == copy.main]
    if len(found) > 1 and restored is not None:
        found = [each for each in found if _place(each) == _place(restored)]
    return found[0] if len(found) == 1 else None


def _place(tracker: Tracker) -> tuple[Any, ...]:
    """Return where the messages and the states of an app go."""
    conf = tracker.app.conf
    return conf.broker_url, conf.get(f"{PREFIX}store_url"), conf.get(f"{PREFIX}store_options")
