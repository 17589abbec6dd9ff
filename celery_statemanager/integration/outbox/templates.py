"""Make the message of a member from one that Celery has made for a similar member, in a fraction of the time.

Two members are similar if they have the same task and the same options. Their messages then differ only in ids and
arguments, unless other code than Celery's own takes part: a task class, a router, a signal handler, a library that
replaces functions of Celery. The messages of such tasks are all made by Celery.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from functools import cached_property, partial
from inspect import getattr_static
from types import FunctionType
from typing import Any

from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute
from celery.canvas import Signature
from celery.utils.saferepr import saferepr
from kombu.serialization import dumps as encode

from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import Envelope, body_fields, from_json, to_json, with_headers

_Repr = Callable[[Any], str]

MOST = 100
"""Maximum number of templates at a time."""

_Key = tuple[str, bytes]
"""A task and options. Similar members have the same key."""


class Templates:
    """The templates of one job that is being submitted."""

    def __init__(self, app: Celery, capture: Capture) -> None:
        self._app = app
        self._capture = capture
        self._tasks: dict[str, Any] = {}
        """The tasks that may have templates, by name; None instead of one that may not."""
        self._templates: dict[_Key, _Template] = {}

    def make(self, binding: Binding, stage: Signature[Any]) -> str | None:
        """Return the message of a member with one stage as JSON; None if Celery must make it. Raises: EncodeError."""
        key = self._key(stage)
        template = None if key is None else self._templates.get(key)
        return template.fill(binding, stage) if template and template.proven else None

    def learn(self, binding: Binding, stage: Signature[Any], message: Envelope) -> None:
        """Use a message that Celery has made: as a template, or as the proof of one.

        A template is proven if it yields a second message exactly as Celery has made it.
        """
        name = stage["task"]
        if name not in self._tasks:
            task = self._app.tasks.get(name)
            self._tasks[name] = task if _is_uniform_task(self._app, task) else None
        key = self._key(stage)
        template = None if key is None else self._templates.get(key)
        if template is not None:
            template.prove(binding, stage, message)
            if not template.proven:
                self._tasks[name] = None
        elif key is not None and _are_uniform_options(stage.options):
            self._templates[key] = _Template(message, *self._capture.last, self._reprs)
            if len(self._templates) > MOST:
                del self._templates[next(iter(self._templates))]

    @cached_property
    def _reprs(self) -> tuple[_Repr, _Repr]:
        """The functions with which Celery shows positional and keyword arguments in headers."""
        levels = getattr(self._app.conf, "task_repr_maxlevels", 3)  # Celery 5.6 has no such setting
        sizes = self._app.amqp.argsrepr_maxsize, self._app.amqp.kwargsrepr_maxsize
        return _repr(sizes[0], levels, ()), _repr(sizes[1], levels, {})

    def _key(self, stage: Signature[Any]) -> _Key | None:
        """Return the key of a member; None if it can have no template."""
        name: Any = stage.get("task")
        task = self._tasks.get(name)
        own: Any = stage._type  # type: ignore[attr-defined] # incomplete stubs
        if task is None or not (own is None or own is task):
            return None
        try:
            return name, pickle.dumps(stage.get("options"))  # differs for equal values of different types
        except Exception:  # noqa: BLE001 - options may be of any type
            return None


def _repr(size: int, levels: int, empty: Any) -> _Repr:
    of_empty = saferepr(empty, size, levels)
    return lambda arguments: saferepr(arguments, size, levels) if arguments else of_empty


class _Template:
    """A message of a member, as JSON with places for the values that differ between similar members.

    Attributes:
        proven: whether it has yielded a second message exactly as Celery has made it.
    """

    def __init__(self, message: Envelope, body: Any, arguments: dict[str, Any], reprs: tuple[_Repr, _Repr]) -> None:
        self.proven = False
        self._message = {name: value for name, value in message.items() if name != "base64"} | {"body": _place("body")}
        self._embedded = body[2]
        self._encode = partial(encode, serializer=arguments["serializer"])
        self._args_repr, self._kwargs_repr = reprs

    def fill(self, binding: Binding, stage: Signature[Any]) -> str:
        """Return the message of a similar member as JSON. Raises: EncodeError."""
        args, kwargs = tuple(stage["args"]), {**stage["kwargs"]}
        return self._format % {
            "id": to_json(binding.celery_task_id),
            "binding": to_json(binding.to_header()),
            "args": to_json(self._args_repr(args)),
            "kwargs": to_json(self._kwargs_repr(kwargs)),
            "body": to_json(body_fields(self._encode((args, kwargs, self._embedded))[2]))[1:-1],
        }

    def prove(self, binding: Binding, stage: Signature[Any], message: Envelope) -> None:
        """Compare the message of a similar member with the one that Celery has made."""
        try:
            self.proven = _timeless(from_json(self.fill(binding, stage))) == _timeless(message)
        except Exception:  # noqa: BLE001 - arguments may be of any type, and are encoded for the second time
            self.proven = False

    @cached_property
    def _format(self) -> str:
        """The message as a format string, to insert the JSON texts of the values."""
        publish = self._message["publish"]
        headers = publish["headers"]
        places = {name: _place("id") for name in ("id", "root_id") if headers[name] == headers["id"]}
        places |= {HEADER: _place("binding"), "argsrepr": _place("args"), "kwargsrepr": _place("kwargs")}
        publish = {**publish, "correlation_id": _place("id"), "headers": {**headers, **places}}
        text = to_json({**self._message, "publish": publish}).replace("%", "%%")
        text = text.replace(f'"body": "{_place("body")}"', "%(body)s")
        for name in ("id", "binding", "args", "kwargs"):
            text = text.replace(f'"{_place(name)}"', f"%({name})s")
        return text


_UNIQUE = uuid.uuid4().hex


def _place(name: str) -> str:
    """Return a text that marks a place in a template. No message contains it."""
    return f"{_UNIQUE} {name}"


def _timeless(message: Envelope) -> str:
    """Return a message as JSON, without the times that count from each publication."""
    relative = [name for name in ("eta", "expires") if f"{name}_after" in message]
    timeless = with_headers(message, **dict.fromkeys(relative))
    return to_json({**timeless, **{f"{name}_after": None for name in relative}})


_UNIFORM_OPTIONS = frozenset(
    {"compression", "delivery_mode", "exchange", "priority", "queue", "reply_to", "routing_key", "serializer"}
    | {"countdown", "expires", "ignore_result", "retry", "retry_policy", "soft_time_limit", "time_limit"}
    | {"headers", "link", "link_error", "shadow", "stamped_headers"}
)
"""Options with the same effect on each message. ``eta`` is none: a broker's own delay counts from the submission."""

_OTHER_HEADERS = frozenset({HEADER, "id", "root_id", "argsrepr", "kwargsrepr"})
"""Headers that differ between similar members."""


def _are_uniform_options(options: dict[str, Any]) -> bool:
    """Return whether options have the same effect on each message."""
    stamps, headers = options.get("stamped_headers") or (), options.get("headers") or {}
    return not options.keys() - _UNIFORM_OPTIONS - {*stamps} and not _OTHER_HEADERS & {*headers}


_BACKENDS = frozenset({"celery.backends.base", "celery.backends.redis", "celery.backends.rpc"})
"""The modules of result backends that need no call for each message.

The one for RPC declares the same queue each time. Those for Redis subscribe to the result, as its readers do anyway.
"""


def _is_uniform_task(app: Celery, task: Any) -> bool:
    """Return whether only Celery's own code makes the messages of a task, and none of it depends on the arguments."""
    amqp: Any = app.amqp
    router: Any = amqp.router
    functions = (
        (getattr_static(task, "apply_async", None), "celery.app.task"),
        (getattr_static(task, "shadow_name", None), "celery.app.task"),
        (getattr_static(task, "_get_exec_options", None), "celery.app.task"),
        (getattr_static(app, "send_task"), "celery.app.base"),
        (getattr_static(amqp, "as_task_v2", None), "celery.app.amqp"),
        (amqp.send_task_message, "celery.app.amqp"),
        (getattr_static(router, "route", None), "celery.app.routes"),
    )
    return (
        all(_module(function) == module for function, module in functions)
        and type(amqp) is AMQP
        and amqp.create_task_message == amqp.as_task_v2  # not protocol 1
        and all(type(each) is MapRoute for each in router.routes)
        and task.app is app
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and _module(getattr_static(app.backend, "on_task_call", None)) in _BACKENDS
        and not app.conf.task_send_sent_event
        and not any(map(_has_other_receivers, ("before_task_publish", "after_task_publish", "task_sent")))
    )


def _has_other_receivers(signal: str) -> bool:
    """Return whether a signal has receivers other than those of this package, which change only running tasks."""
    receivers = getattr(signals, signal).receivers if hasattr(signals, signal) else ()
    return any(_module(receiver) != "celery_statemanager.integration.signals" for _, receiver in receivers)


def _module(function: Any) -> str | None:
    """Return the module in which a function is defined. Of a wrapper, this is the module of the wrapper."""
    return str(function.__globals__["__name__"]) if type(function) is FunctionType else None
