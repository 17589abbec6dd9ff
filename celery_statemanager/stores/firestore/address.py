"""Which documents a URL means. Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_statemanager.errors import ConfigurationError

EMULATOR_VARIABLE = "FIRESTORE_EMULATOR_HOST"
"""Where the client libraries look for an emulator; read when the first connection is made."""

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z0-9][a-z0-9-]{0,62}")
_DATABASE = re.compile(r"\(default\)|[a-z][a-z0-9-]{2,61}[a-z0-9]")
_COLLECTION = re.compile(r"[^/\x00-\x1f%]{1,200}")
_FORM = "firestore://PROJECT[/COLLECTION][?database=ID]"


@dataclass(frozen=True)
class Address:
    """A collection of jobs in a database of a project."""

    project: str
    collection: str = "jobs"
    database: str = "(default)"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``firestore://PROJECT[/COLLECTION][?database=ID]``. Raises: ConfigurationError."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        database = options.pop("database", "(default)")
        if options:
            raise ConfigurationError(f"{url} has an option that Firestore does not know, {min(options)!r}: {_FORM}")
        # urlsplit lowers no netloc; a domain-scoped project holds a colon that is no port
        return cls(unquote(parts.netloc), unquote(parts.path).strip("/") or "jobs", database).checked()

    def checked(self) -> Address:
        """Refuse what Firestore would refuse with less clear words. Raises: ConfigurationError."""
        if not _PROJECT.fullmatch(self.project):
            why = "is a lower-case id of letters, digits and dashes"
            raise ConfigurationError(f"a Firestore project {why}, not {self.project!r}: {_FORM}")
        if not _DATABASE.fullmatch(self.database):
            raise ConfigurationError(f"a Firestore database is '(default)' or a lower-case id, not {self.database!r}")
        if not _COLLECTION.fullmatch(self.collection) or re.fullmatch(r"\.{1,2}|__.*__", self.collection):
            raise ConfigurationError(f"a Firestore collection is one name without '/', not {self.collection!r}")
        return self

    @property
    def database_path(self) -> str:
        """The database as requests name it."""
        return f"projects/{self.project}/databases/{self.database}"

    @property
    def root(self) -> str:
        """The parent of the root collections."""
        return f"{self.database_path}/documents"

    def __str__(self) -> str:
        database = "" if self.database == "(default)" else f"?database={self.database}"
        return f"firestore://{self.project}/{self.collection}{database}"


def emulator() -> str | None:
    """Give ``host:port`` of the emulator to use instead of the real service, if there is one."""
    return os.environ.get(EMULATOR_VARIABLE) or None
