"""What a task can throw or return: objects whose own code fails, built from descriptions that fit into a message."""

import os
from pathlib import Path

from celery import Task, signals
from celery.exceptions import Ignore, Reject

from celery_statemanager import StateError, StatefulTask, current_state


class Mute(Exception):
    def __str__(self):
        return f"{self.args[0]}: {self.args[1]}"


class Wordless(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307

    def __repr__(self):
        raise RuntimeError("no text")


class Shout(str):
    __slots__ = ()

    def _raise(self, *_):
        raise RuntimeError("not today")

    encode = __getitem__ = __len__ = __format__ = __str__ = _raise


class Shouted(Exception):
    def __str__(self):
        return Shout("loud")


class Stuck(ValueError):
    def __reduce__(self):
        raise RuntimeError("not to be pickled")


class TwoArguments(ValueError):
    """An exception that pickle cannot restore, as those of many libraries."""

    def __init__(self, first="one", second="two"):
        super().__init__(first)
        self.second = second


class Classless(Exception):
    @property
    def __class__(self):
        raise RuntimeError("no class")


class Impostor(Exception):
    @property
    def __class__(self):
        return StateError


class Argless(Exception):
    @property
    def args(self):
        raise RuntimeError("no arguments")


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class WithoutName(Exception, metaclass=Nameless):
    pass


class Unequal(Exception):
    def __eq__(self, other):
        raise RuntimeError("not comparable")

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    __hash__ = None


class WithoutCode(StateError):
    def __init__(self, *args):
        Exception.__init__(self, *args)


class AnyCode(StateError):
    def __init__(self, code=-5, message="own"):
        Exception.__init__(self, code, message)
        self.code, self.message = code, message


class MuteIgnore(Ignore):
    def __str__(self):
        raise RuntimeError("no text")


class ClasslessIgnore(Ignore):
    @property
    def __class__(self):
        raise RuntimeError("no class")


class BareReject(Reject):
    def __init__(self, *args):
        Exception.__init__(self, *args)


class Opaque:
    """A value that can be neither printed nor encoded nor tested."""

    def _raise(self, *_):
        raise RuntimeError("opaque")

    __repr__ = __str__ = __bool__ = __eq__ = __reduce__ = __json__ = __float__ = _raise
    __hash__ = None


def _nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def _circle():
    value = {}
    value["itself"] = value
    return value


VALUES = {
    "text": lambda: "text",
    "shout": lambda: Shout("loud"),
    "bytes": lambda: b"\xff\x00",
    "surrogate": lambda: "\ud800 lone",
    "nul": lambda: "a\0b",
    "long": lambda: "ä" * 1_000_000,
    "none": lambda: None,
    "huge": lambda: 10**5_000,
    "wide": lambda: 2**70,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "nested": lambda: _nested(300),
    "abyss": lambda: _nested(100_000),
    "circle": _circle,
    "set": lambda: {1, 2},
    "keys": lambda: {1: 2, (3, 4): 5, None: 6},
    "object": object,
    "opaque": Opaque,
    "function": lambda: lambda: None,
    "class": lambda: Opaque,
    "generator": lambda: (each for each in "abc"),
    "many": lambda: [Opaque()] * 3,
    "one": lambda: 1,
    "minus": lambda: -7,
}
"""Values by name: each call makes a new one."""

ERRORS = {
    kind.__name__ if type(kind) is type else "WithoutName": kind
    for kind in (
        *(Mute, Wordless, Shouted, Stuck, TwoArguments, Classless, Impostor, Argless, WithoutName, Unequal),
        *(WithoutCode, AnyCode, StateError, Exception, ValueError, KeyError, OSError, StopIteration, RecursionError),
        *(AssertionError, SystemError, UnicodeError, Warning),
    )
}
"""Exceptions by name."""


def error_of(name, values, linked=None):
    """Create an exception; ``linked`` names the attribute that leads back to it."""
    made = [VALUES[each]() for each in values]
    error = type(name[1:], (Exception,), {})(*made) if name.startswith("*") else ERRORS[name](*made)
    if linked == "__notes__":
        error.__notes__ = [5, Opaque()]
    elif linked:
        setattr(error, linked, inner := ValueError("inner"))
        setattr(inner, linked, error)
    return error


def act(task, how, name="text", values=(), linked=None):
    """Do what an example describes."""
    if how == "raise":
        raise error_of(name, values, linked)
    if how == "retry":
        raise task.retry(exc=error_of(name, values, linked), countdown=0, max_retries=1)
    if how == "recover" and task.request.retries == 0:
        raise task.retry(exc=error_of("ValueError", ()), countdown=0)
    if how == "give up":
        raise task.retry(exc=error_of(name, values, linked), countdown=0, max_retries=0)
    if how in _PREDICATES:
        raise _PREDICATES[how](*(VALUES[each]() for each in values[:1]))
    if how in {"return", "recover"}:
        return VALUES[name]()
    _report(how, [VALUES[each]() for each in (*values, name)])
    return None


_PREDICATES = {
    "ignore": Ignore,
    "mute ignore": MuteIgnore,
    "classless ignore": ClasslessIgnore,
    "reject": Reject,
    "bare reject": BareReject,
}


def _report(how, values):
    """Report a state; only a rejected argument of ``set`` may raise."""
    state = current_state()
    if how == "progress":
        state.progress(*(values * 3)[:3])
        return
    try:
        state.set(5, *([None, {"value": values[0]}] if how == "payload" else values[:1]))
    except (TypeError, ValueError) as error:
        assert str(error).startswith(("message ", "payload ")), error  # noqa: PT017 - the body of a task


def throw(task, key, example):
    """Record the run of an example, then act as it describes."""
    _note(key, f"{task.request.id} run")
    return act(task, **{name: value for name, value in example.items() if name != "hook"})


class Hooks:
    """The methods that Celery calls around a body; the one that an example names raises."""

    def before_start(self, task_id, args, kwargs):
        super().before_start(task_id, args, kwargs)
        self._call("before_start", args)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._call("on_retry", args)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._call("on_failure", args)

    def on_success(self, retval, task_id, args, kwargs):
        self._call("on_success", args)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._call("after_return", args)

    def _call(self, name, args):
        if args[1].get("hook") == name:
            raise Mute(name)


class Throwing(Hooks, StatefulTask):
    abstract = True


class PlainThrowing(Hooks, Task):
    abstract = True


@signals.task_postrun.connect(weak=False)
def _note_end(task_id=None, task=None, args=(), state=None, **_):
    if task.name in {"throw", "throw_plain"}:
        _note(args[0], f"{task_id} {state}")


def _note(key, line):
    with Path(os.environ["TRACKED_HOME"], key).open("a") as file:
        file.write(f"{line}\n")
