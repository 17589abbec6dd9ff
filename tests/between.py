"""A store that runs an action before one of its calls, so that a race happens in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_statemanager import Store
from celery_statemanager.stores.wrapped import WrappedStore


class Between(WrappedStore):
    """Run an action before the call with the given number."""

    def __init__(self, inner: Store, number: int, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self.left = number
        self.action = action

    def calling(self, method: str, call: Callable[[], Any]) -> Any:
        if self.left == 0:
            self.action()
        self.left -= 1
        return call()
