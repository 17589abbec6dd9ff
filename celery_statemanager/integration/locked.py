"""A property that is computed once per object, also if several threads read it at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

_LOCK = "_locked_property_lock"


class LockedProperty(Generic[T]):
    """A value that is computed on first use and cached in the object's ``__dict__``; it may be assigned to.

    ``functools.cached_property`` has no lock since Python 3.12, so two threads may compute two values. This property
    has one lock per object. The lock is reentrant, so one such property may use another.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> LockedProperty[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> LockedProperty[T] | T:
        """Return the value. Python does not call this once the value is in the object's ``__dict__``."""
        if instance is None:
            return self
        values = vars(instance)
        with values.setdefault(_LOCK, threading.RLock()):
            if self._name not in values:
                values[self._name] = self._compute(instance)
            value: T = values[self._name]
            return value
