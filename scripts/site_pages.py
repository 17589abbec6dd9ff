"""Pages of the site that are generated from the code: the options of all commands, and the wire format."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import entry_points
from typing import Any

import click

from celery_statemanager import IndexSet, State, Status, Summary
from celery_statemanager.codec import event_to_wire, job_to_wire
from celery_statemanager.models import StateEvent
from celery_statemanager.records import new_job
from celery_statemanager.web.openapi import PATHS, SCHEMAS

MOMENT = datetime(2026, 11, 24, 14, 3, 27, 500_000, timezone.utc)


def generated() -> dict[str, str]:
    """Return the content of each generated page by its path."""
    return {"reference/options.md": options(), "reference/wire-format.md": wire_format()}


def options() -> str:
    """Return the help of each command."""
    parts = [
        "# All options\n",
        (
            "What each command prints with `--help`. [Commands](../commands.md) explains them by example. "
            "`proj` is the module of your app.\n"
        ),
    ]
    for name, command in commands().items():
        context = click.Context(command, info_name=f"celery -A proj {name}", terminal_width=80, max_content_width=80)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def commands() -> dict[str, click.Command]:
    """Return the commands of this package by name."""
    found = entry_points(group="celery.commands")
    return {each.name: each.load() for each in found if each.value.startswith("celery_statemanager.")}


def examples() -> dict[str, dict[str, Any]]:
    """Return one example of each JSON object, by the name of its section."""
    state = State("etl-42", 17, "ingest", 40, "page 4 of 10", {"row": 400}, MOMENT, 6, "9f2c41d0", 1)
    rows = IndexSet.parse("3,17-20")
    summary = Summary(100, 200, 141, 6, 45, 4, replace(state, status=-1), 0.245, failed_indexes=rows, not_run=4)
    job = replace(new_job("etl-42", 100), created_at=1_764_000_000_000_000)
    return {
        "A state": state.as_dict(),
        "An event": event_to_wire(StateEvent(state, replay=True)),
        "A summary": summary.as_dict(),
        "A job": job_to_wire(job),
    }


def wire_format() -> str:
    """Return the page of the wire format."""
    parts = [
        "# Wire format\n",
        (
            "The JSON of `State.as_dict()`, `Summary.as_dict()`, of the commands with `--format json`, and of the "
            "[web](../web.md). Names of fields do not change within a major version; readers ignore unknown fields.\n"
        ),
        "## Status\n",
        table(("status", "name"), [(f"`{int(each)}`", f"`{each.name}`") for each in Status]),
        "`2` to `2147483646` are for your own use, and `-8` and below are your error codes.\n",
    ]
    for title, example in examples().items():
        shown = json.dumps(example, indent=2, ensure_ascii=False)
        parts += [f"## {title}\n", f"```json\n{shown}\n```\n"]
    parts.append("## Objects of the web\n")
    for name, schema in SCHEMAS.items():
        required = schema["required"]
        rows = [(f"`{key}`", type_of(each), "" if key in required else "no") for key, each in fields_of(schema)]
        parts += [f"### {name}\n", table(("field", "type", "always present"), rows)]
    rows = [
        (f"`{method.upper()} {path}`", route["summary"], ", ".join(f"`{each['name']}`" for each in route["parameters"]))
        for path, methods in PATHS.items()
        for method, route in methods.items()
    ]
    parts += ["## Routes of the web\n", table(("route", "what it does", "parameters"), rows)]
    return "\n".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(each)} |\n" for each in lines)


def fields_of(schema: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the fields of an object."""
    return list(schema["properties"].items())


def type_of(schema: dict[str, Any]) -> str:
    """Return a short text for a JSON schema."""
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2]}](#{schema['$ref'].rpartition('/')[2].lower()})"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{each}`" for each in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    kinds = schema.get("type", "any")
    if kinds == "array" and "items" in schema:
        return f"list of {type_of(schema['items'])}"
    if kinds == "object" and "additionalProperties" in schema:
        return f"object by tag of {type_of(schema['additionalProperties'])}"
    return " or ".join(kinds) if isinstance(kinds, list) else kinds


def expanded(markdown: str) -> str:
    """Return the Markdown of a page with the docstrings of the objects that it names by ``:::``."""
    return re.sub(r"^::: ([\w.]+)\n(?:(?: {4}.*)?\n)*", lambda match: described(match[1]), markdown, flags=re.MULTILINE)


def described(path: str) -> str:
    """Return the signature and the docstring of a public object, and those of its public members, in Markdown."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    parts = [f"### {name}\n\n", *_described(name, found)]
    if inspect.isclass(found):
        for member, value in vars(found).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                parts += [f"#### {name}.{member}\n\n", *_described(member, getattr(value, "__func__", value))]
    return "".join(parts)


def _described(name: str, found: Any) -> Iterator[str]:
    if callable(found):
        with contextlib.suppress(TypeError, ValueError):
            yield f"```python\n{name}{inspect.signature(found)}\n```\n\n"
    text = inspect.getdoc(found)
    if text:
        yield f"{text}\n\n"
