"""The scripts, one per atomic step, as they are sent to the server."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from typing import NamedTuple

from celery_statemanager.models import FINISHED, Status
from celery_statemanager.stores.redis.cells import CELL, TALLY
from celery_statemanager.stores.redis.jobs import HEAD
from celery_statemanager.stores.redis.requests import BEGIN, WRITE

_PARTS: dict[str, tuple[str, ...]] = {
    "write": ("common", "attempts"),
    "begin": ("common", "attempts"),
    "update": ("common",),
    "rewrite": ("common",),
}
"""Other texts that stand before a script's own."""

_CONSTANTS = {
    **{f"N_{field.upper()}": str(at) for at, field in enumerate(TALLY, 1)},
    **{field.upper(): str(at) for at, field in enumerate(CELL, 1)},
    "FINISHED": str(FINISHED),
    "CANCELLED": str(int(Status.CANCELLED)),
    "STARTED": str(int(Status.STARTED)),
    "HEAD": ", ".join(map(json.dumps, HEAD)),
}
"""What names in capitals stand for. Numbers in the text: every function would have to be handed its variables."""

_ELEMENTS = {
    name: {field: f"{name}[{at}]" for at, field in enumerate(fields, 1)}
    for name, fields in (("write", WRITE), ("begin", BEGIN))
}
"""What fields of requests stand for."""

_COMMENT = re.compile(r"--.*")
_NAME = re.compile(r"\b(?:(write|begin)\.(\w+)|[A-Z_]+)\b")


class Script(NamedTuple):
    """A script's text and the digest by which the server remembers it."""

    source: str
    digest: str


class Scripts:
    """All scripts of a store.

    Args:
        stream_length: after how many changes, about, the oldest ones leave a job's stream.
    """

    def __init__(self, stream_length: int) -> None:
        constants = {**_CONSTANTS, "EVENTS": f'"{stream_length}"'}

        def meaning(found: re.Match[str]) -> str:
            request, field = found.groups()
            return _ELEMENTS[request][field] if request else constants.get(found[0], found[0])

        def load(name: str) -> Script:
            text = "".join(_text(part) for part in (*_PARTS.get(name, ()), name))
            source = _NAME.sub(meaning, _COMMENT.sub("", text))
            return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

        self.write, self.begin, self.update = map(load, ("write", "begin", "update"))
        self.create, self.detach = map(load, ("create", "detach"))
        self.rewrite, self.adopt = map(load, ("rewrite", "adopt"))
        self.cells, self.columns = map(load, ("cells", "columns"))
        self.touch, self.rest, self.retire, self.worker = map(load, ("touch", "rest", "retire", "worker"))


def _text(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
