"""A store between whose calls a test does something: races are forced, not hoped for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_statemanager import Store
from celery_statemanager.stores.wrapped import WrappedStore


class Between(WrappedStore):
    """Does something before one of the calls that are made to it."""

    def __init__(self, inner: Store, number: int, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self.left = number
        self.action = action

    def calling(self, method: str, call: Callable[[], Any]) -> Any:
        if self.left == 0:
            self.action()
        self.left -= 1
        return call()
