"""A property that is computed once per object, whichever number of threads ask first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

_LOCK = "_locked_property_lock"


class LockedProperty(Generic[T]):
    """Compute a value at first use and keep it in the object's ``__dict__``; may be assigned to.

    ``functools.cached_property`` has no lock from Python 3.12 on: two threads at first use get two values. One lock per
    object, reentrant: one such property may use another.
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
        """Return the value. Called only until it is kept: it is found in the object's ``__dict__`` from then on."""
        if instance is None:
            return self
        kept = vars(instance)
        with kept.setdefault(_LOCK, threading.RLock()):
            if self._name not in kept:
                kept[self._name] = self._compute(instance)
            value: T = kept[self._name]
            return value
