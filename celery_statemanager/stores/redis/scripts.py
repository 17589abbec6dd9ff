"""The Lua scripts, one per atomic step."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from typing import NamedTuple

from celery_statemanager.models import FINISHED, Status
from celery_statemanager.stores.redis.cells import CELL, TALLY
from celery_statemanager.stores.redis.jobs import HEAD
from celery_statemanager.stores.redis.requests import BEGIN, RESET, WRITE
from celery_statemanager.stores.steps import CLAIMS_AT_AN_END

ROWS_OF_A_FIELD = 8
"""Rows whose small values share a field; see lua/row_values.lua."""

MOST_SHARED_BYTES = 256
"""Largest value that shares a field. Each write of one rewrites the field."""

_PARTS: dict[str, tuple[str, ...]] = {
    "write": ("evicted", "common", "storing", "reading", "attempts", "returned", "claiming", "row_values"),
    "begin": ("evicted", "common", "storing", "reading", "attempts", "returned"),
    "reset": ("evicted", "common", "storing", "reading", "returned"),
    "claim": ("evicted", "common", "returned", "claiming"),
    "outbox": ("evicted", "returned"),
    "values": ("evicted",),
    "update": ("evicted", "common"),
    "rewrite": ("evicted", "common"),
    "cells": ("evicted",),
    "columns": ("evicted",),
}
"""The files that are put before a script's own."""

_CONSTANTS = {
    **{f"N_{field.upper()}": str(at) for at, field in enumerate(TALLY, 1)},
    **{field.upper(): str(at) for at, field in enumerate(CELL, 1)},
    "CELL_SIZE": str(len(CELL)),
    "FINISHED": str(FINISHED),
    "CANCELLED": str(int(Status.CANCELLED)),
    "LOST": str(int(Status.LOST)),
    "STARTED": str(int(Status.STARTED)),
    "CLAIMS_AT_AN_END": str(CLAIMS_AT_AN_END),
    "ROWS_OF_A_FIELD": str(ROWS_OF_A_FIELD),
    "MOST_SHARED_BYTES": str(MOST_SHARED_BYTES),
    "HEAD": ", ".join(map(json.dumps, HEAD)),
}
"""The literals that replace names in capitals. Lua variables would be slower: each function captures those it uses."""

_ELEMENTS = {
    name: {field: f"{name}[{at}]" for at, field in enumerate(fields, 1)}
    for name, fields in (("write", WRITE), ("begin", BEGIN), ("reset", RESET))
}
"""The array elements that replace fields of requests."""

_COMMENT = re.compile(r"--.*")
_NAME = re.compile(r"\b(?:(write|begin|reset)\.(\w+)|[A-Z_]+)\b")


class Script(NamedTuple):
    """A script's source and the digest under which the server caches it."""

    source: str
    digest: str


class Scripts:
    """All scripts of a store.

    Args:
        stream_length: the approximate number of changes that a job's stream keeps.
    """

    def __init__(self, stream_length: int) -> None:
        constants = {**_CONSTANTS, "EVENTS": f'"{stream_length}"'}

        def substitute(match: re.Match[str]) -> str:
            request, field = match.groups()
            return _ELEMENTS[request][field] if request else constants.get(match[0], match[0])

        def load(name: str) -> Script:
            lua = files(__package__) / "lua"
            parts = (*_PARTS.get(name, ()), name)
            text = "".join(lua.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in parts)
            source = _NAME.sub(substitute, _COMMENT.sub("", text))
            return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

        self.write, self.begin, self.reset, self.update = map(load, ("write", "begin", "reset", "update"))
        self.create, self.detach = map(load, ("create", "detach"))
        self.rewrite, self.adopt = map(load, ("rewrite", "adopt"))
        self.cells, self.columns = map(load, ("cells", "columns"))
        self.touch, self.unlist, self.retire, self.worker = map(load, ("touch", "unlist", "retire", "worker"))
        self.draft, self.claim, self.outbox, self.values = map(load, ("draft", "claim", "outbox", "values"))
