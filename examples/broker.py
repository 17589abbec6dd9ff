"""A broker in a folder: Kombu's filesystem transport with atomic writes and reads of messages.

Kombu's transport writes messages in place. A consumer that reads a partial message ends its worker with a
``JSONDecodeError``. This transport writes a draft and renames it, and a consumer takes a message by renaming it.

The broker is meant for demos and tests on one machine. As with Kombu's own, a message is lost if its worker is killed.
"""

import fcntl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

CLOCK_STEP = 50_000_000
"""Nanoseconds. Changes of a folder that are closer together may give it the same time."""


class Channel(filesystem.Channel):
    """A channel that puts and gets messages by ``rename`` and changes its table of queues under a lock.

    An idle consumer reads the time of the folder. It lists the folder only after a change.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._empty: dict[str, int] = {}
        """The time of the folder at which a queue had no message."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f".draft-{name}"
        draft.write_text(dumps(payload), encoding="utf-8")
        draft.rename(folder / name)

    def _get(self, queue: str) -> Any:
        folder, now = Path(self.data_folder_in), time.time_ns()
        changed = folder.stat().st_mtime_ns
        if self._empty.get(queue) == changed:
            raise Empty
        for name in sorted(each.name for each in folder.iterdir()):
            if name.partition(".")[2] == f"{queue}.msg":
                taken = folder / f".taken-{name}"
                try:
                    (folder / name).rename(taken)
                except FileNotFoundError:
                    continue
                payload = loads(taken.read_text(encoding="utf-8"))
                taken.unlink()
                return payload
        if now - changed > CLOCK_STEP:
            self._empty[queue] = changed
        raise Empty

    def get_table(self, exchange: str) -> Any:
        with self._table_locked():
            return super().get_table(exchange)

    def _queue_bind(self, *args: Any) -> None:
        with self._table_locked():
            super()._queue_bind(*args)

    def _delete(self, *args: Any, **kwargs: Any) -> None:
        with self._table_locked():
            super()._delete(*args, **kwargs)

    @contextmanager
    def _table_locked(self) -> Iterator[None]:
        self.control_folder.mkdir(exist_ok=True)
        with (self.control_folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Transport(filesystem.Transport):
    """The transport to configure as ``broker_transport = "examples.broker:Transport"``."""

    Channel = Channel


def settings(home: Path) -> dict[str, Any]:
    """Create the broker's folders below ``home`` and return the app settings for it."""
    for folder in ("queue", "control"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://",
        "broker_transport": "examples.broker:Transport",
        "broker_transport_options": {
            "data_folder_in": str(home / "queue"),
            "data_folder_out": str(home / "queue"),
            "control_folder": str(home / "control"),
            "polling_interval": 0.02,
        },
    }
