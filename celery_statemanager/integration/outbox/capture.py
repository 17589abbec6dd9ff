"""Let Celery make the message of a cell without sending it: task classes, hooks and routes run as always."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import Celery

from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.outbox.envelope import Envelope, from_publication

if TYPE_CHECKING:
    from typing_extensions import Self


def task_id_of(headers: dict[str, Any], body: Any) -> str | None:
    """Return the Celery task id of a message that is about to be published, in either of Celery's protocols."""
    found: str | None = headers.get("id") if isinstance(body, tuple) else body.get("id")
    return found


def retries_of(headers: dict[str, Any], body: Any) -> int:
    """Return the number of retries before a message, in either of Celery's protocols."""
    return int((headers if isinstance(body, tuple) else body).get("retries") or 0)


class Capture:
    """A producer that keeps the messages of cells. All other messages, such as events, are sent.

    Celery has no public way to make a message without sending it. It accepts any object with ``publish`` and the
    ``connection`` of a producer. Attributes that a task class may use are those of a real producer.

    Attributes:
        last: the body, not encoded, and the arguments of ``kombu.Producer.publish`` of the message that was kept last.
    """

    last: tuple[Any, dict[str, Any]]

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._stack = ExitStack()
        self._binding: Binding | None = None
        self._made: Envelope | None = None
        self.connection = self._stack.enter_context(app.connection_for_write())  # does not connect

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sender(), name)

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: a chain passes a producer only as an option of its first task, which it copies."""
        return self

    def make(
        self, binding: Binding, apply: Callable[[Capture], object], options: dict[str, Any] | None = None
    ) -> Envelope | None:
        """Return the message that ``apply`` sends with this producer for a cell; None if it sends none.

        Args:
            options: those of the task signature; a relative countdown or expiry counts from each publication.

        Raises: what ``apply`` raises; EncodeError.
        """
        self._binding, self._made = binding, None
        try:
            apply(self)
        finally:
            self._binding = None
        if self._made is not None:
            self._made.update(_relative_times(self._made["publish"]["headers"], options or {}))
        return self._made

    def publish(self, body: Any, *, headers: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """Keep the message if it is the expected one, else send it."""
        binding, headers = self._binding, headers or {}
        is_task = isinstance(body, tuple) or (isinstance(body, dict) and "task" in body and "id" in body)
        if binding is None or not is_task or task_id_of(headers, body) != binding.celery_task_id:
            return self._sender().publish(body, headers=headers, **arguments)
        self.last = body, arguments
        lost = {} if HEADER in headers else {HEADER: binding.to_header()}
        self._made = from_publication(body, {**lost, **headers}, arguments)
        return None

    def _sender(self) -> Any:
        """Return a real producer."""
        if "_real" not in vars(self):
            self._real = self._stack.enter_context(self._app.producer_or_acquire())
        return self._real


def _relative_times(headers: dict[str, Any], options: dict[str, Any]) -> dict[str, float]:
    """Return the seconds from each publication to the times that were given relative to it."""
    given = {"eta": options.get("countdown"), "expires": options.get("expires")}
    return {
        f"{header}_after": _seconds_until(headers[header], seconds)
        for header, seconds in given.items()
        if isinstance(seconds, (int, float)) and headers.get(header)
    }


def _seconds_until(text: str, given: float) -> float:
    """Return the seconds until a time; those that were given, unless a task class has changed the time."""
    moment = datetime.fromisoformat(text)
    now = datetime.now(timezone.utc) if moment.tzinfo else datetime.now(timezone.utc).replace(tzinfo=None)
    seconds = (moment - now).total_seconds()
    return given if abs(seconds - given) < 1 else round(seconds, 3)
