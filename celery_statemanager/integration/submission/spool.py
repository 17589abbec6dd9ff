"""The members of a job between their reading and their publication."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.canvas import Signature, maybe_signature
from kombu.utils.json import JSONEncoder

IN_MEMORY = 8 * 2**20
"""Bytes of a generator's members that stay in memory: a container may have no writable folder for temporary files."""

Stages = list[Signature[Any]]


class MemberList:
    """Members of a list, which the caller keeps in memory as well."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._members: list[Stages] = []

    def add(self, row: int, stages: Stages) -> None:
        """Add the next member."""
        self._members.append(stages)

    def __iter__(self) -> Iterator[Stages]:
        """Yield copies of the members."""
        for stages in self._members:
            copies: list[Any] = [maybe_signature(stage, app=self._app, clone=True) for stage in stages]
            yield copies


_encode = JSONEncoder().encode  # kombu's dumps creates an encoder at each call


def serializer_of(app: Celery, signature: Signature[Any]) -> str:
    """Return the name of the format in which Celery sends the arguments of a task signature."""
    own = getattr(app.tasks.get(signature.task or ""), "serializer", None)
    return str(signature.options.get("serializer") or own or app.conf.task_serializer)


def _check_encodable(app: Celery, row: int, signature: Signature[Any]) -> None:
    """Check the arguments of a member before the job is created, if they are sent as JSON. Raises: TypeError."""
    takes_models = getattr(app.tasks.get(signature.task or ""), "_dump_pydantic_arguments", None)
    if takes_models or serializer_of(app, signature) != "json":
        return
    try:
        _encode([signature.args, signature.kwargs])
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cannot encode member {row} of the generator as JSON ({error}): pass values that JSON supports, or set "
            "another task_serializer"
        ) from error


class MemberFile:
    """Members of a generator in a temporary file, which no other process can open and which is closed with this object.

    They are pickled, because a member must be sent as it was given: JSON changes tuples and the keys of dictionaries. A
    member that cannot be pickled stays in memory.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._in_memory: dict[int, list[dict[str, Any]]] = {}
        self._rows = 0

    def add(self, row: int, stages: Stages) -> None:
        """Add the next member. Raises: TypeError – its arguments cannot be sent."""
        for stage in stages:
            _check_encodable(self._app, row, stage)
        member = [dict(stage) for stage in stages]
        self._rows = row + 1
        try:
            content = pickle.dumps(member)
        except Exception:  # noqa: BLE001 - pickle raises any error, and those of the objects' own methods
            self._in_memory[row] = member
        else:
            self._file.write(content)

    def __iter__(self) -> Iterator[Stages]:
        """Yield copies of the members."""
        self._file.seek(0)
        for row in range(self._rows):
            member = self._in_memory.get(row)
            if member is None:
                yield [Signature.from_dict(stage, app=self._app) for stage in pickle.load(self._file)]  # noqa: S301 - ours
            else:
                yield [Signature.from_dict(stage, app=self._app).clone() for stage in member]

    def __del__(self) -> None:
        self._file.close()
