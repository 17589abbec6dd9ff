"""The StateManager of a Django project."""

from __future__ import annotations

from celery import current_app

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.installed import all_trackers


def current_states() -> StateManager:
    """Return the StateManager of the project.

    Raises: ConfigurationError – no module has created one, or several apps have one and none is the current app.
    """
    return StateManager.installed(current_app) or _only_one()


def _only_one() -> StateManager:
    """Return the only StateManager of this process. The current app of Celery belongs to the thread that created it."""
    found = [each for each in all_trackers() if isinstance(each, StateManager)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(repr(each.app.main) for each in found))
        raise ConfigurationError(
            f"several Celery apps have a StateManager ({names}) and none of them is the current app: call "
            "app.set_default() on the one whose jobs Django shows"
        )
    raise ConfigurationError(
        "no StateManager exists in this process: create it beside the Celery app with StateManager(app), and import "
        "this module in the __init__.py of your project"
    )
