"""Record the public names, the wire format, the settings and the store contract: ``make api``.

``tests/docs/public_api.json`` is the record. A name that has changed since the last release must be in CHANGELOG.md.
With ``--check``, write nothing and exit with 1 if the record is not current.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from celery import Task

import celery_statemanager
from celery_statemanager import stores, testing
from celery_statemanager.integration.settings import PREFIX, Settings
from celery_statemanager.integration.task.state import TaskState
from celery_statemanager.stores import capabilities, transactional
from celery_statemanager.web.openapi import PATHS, SCHEMAS

sys.path.insert(0, str(Path(__file__).parent))
import site_pages

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "docs" / "public_api.json"
CHANGELOG = ROOT / "CHANGELOG.md"
CONTRACT = {
    **{each.__name__: each for each in (capabilities.FullStore, stores.Store, stores.Outbox, stores.Migratable)},
    **{each.__name__: each for each in (stores.WorkerRegistry, transactional.Transaction)},
}


def current() -> dict[str, Any]:
    """Return the names of the code, by kind. Each value is a list of texts that do not depend on the Python release."""
    public = {name: getattr(celery_statemanager, name) for name in celery_statemanager.__all__}
    return {
        "names": sorted(line for name, each in public.items() for line in lines_of(name, each)),
        "self.state": sorted(lines_of("state", TaskState)),
        "settings": [f"{PREFIX}{each.name}" for each in fields(Settings)],
        "wire": sorted(f"{title}: {name}" for title, each in site_pages.examples().items() for name in each),
        "statuses": [f"{each.name} = {int(each)}" for each in celery_statemanager.Status],
        "web objects": sorted(f"{name}.{each}" for name, schema in SCHEMAS.items() for each in schema["properties"]),
        "web routes": sorted(f"{method.upper()} {path}" for path, methods in PATHS.items() for method in methods),
        "commands": sorted(
            f"{name} {option}"
            for name, command in site_pages.commands().items()
            for each in command.params
            for option in each.opts
            if each.param_type_name == "option"
        ),
        "store contract": sorted({line for name, each in CONTRACT.items() for line in lines_of(name, each)}),
        "celery_statemanager.stores": sorted(stores.__all__),
        "celery_statemanager.testing": sorted(testing.__all__),
    }


def lines_of(name: str, found: Any) -> list[str]:
    """Return a line for an object and one for each of its public members, with the names of the parameters."""
    if not inspect.isclass(found):
        return [name + parameters(found)]
    members = {each: getattr(found, each) for each in dir(found) if is_own(found, each)}
    if is_dataclass(found):
        members.update({each.name: None for each in fields(found)})
    return [name, *(f"{name}.{each}{parameters(value)}" for each, value in members.items())]


def is_own(found: type, name: str) -> bool:
    """Return whether a public member is defined by this package. Celery sets its own on each class of a task."""
    if issubclass(found, Task) and name in dir(Task):
        return False
    owner = next((each for each in found.__mro__ if name in vars(each)), object)
    return not name.startswith("_") and owner.__module__.startswith("celery_statemanager")


def parameters(found: Any) -> str:
    """Return the names of the parameters of a function, with ``=`` for those that have defaults."""
    if not (inspect.isfunction(found) or inspect.ismethod(found)):
        return ""
    names = []
    for each in inspect.signature(found).parameters.values():
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        if each.kind is each.KEYWORD_ONLY and not any("*" in name for name in names):
            names.append("*")
        names.append(f"{star}{each.name}{'' if each.default is each.empty else '='}")
    return f"({', '.join(names)})"


def changes(before: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """Return the names that differ between two records: the last part of each, without parameters."""
    found = {(kind, line) for kind, lines in before.items() for line in lines}
    found ^= {(kind, line) for kind, lines in now.items() for line in lines}
    return {line.partition("(")[0].split(" = ")[0].split(": ")[-1].split(".")[-1].split(" ")[-1] for _, line in found}


def main() -> int:
    """Write or check the record, and return the exit code."""
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"api": current(), "changed": []}
    now = current()
    changed = {*stored["changed"]} | changes(stored["api"], now)
    if "--check" in sys.argv and now != stored["api"]:
        sys.stderr.write(f"changed: {', '.join(sorted(changes(stored['api'], now)))}; run: make api\n")
        return 1
    text = CHANGELOG.read_text(encoding="utf-8")
    unmentioned = sorted(name for name in changed if name.strip("-") not in text)
    if unmentioned:
        sys.stderr.write(f"CHANGELOG.md does not mention: {', '.join(unmentioned)}\n")
        return 1
    if "--check" not in sys.argv:
        RECORD.write_text(json.dumps({"changed": sorted(changed), "api": now}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
