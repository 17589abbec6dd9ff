"""The address of a Firestore store: project, database and collection. Pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_statemanager.errors import ConfigurationError

EMULATOR_VARIABLE = "FIRESTORE_EMULATOR_HOST"
"""The environment variable that names an emulator, as in Google's client libraries."""

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z0-9][a-z0-9-]{0,62}")
_DATABASE = re.compile(r"\(default\)|[a-z][a-z0-9-]{2,61}[a-z0-9]")
_COLLECTION = re.compile(r"[^/\x00-\x1f%]{1,200}")
_FORM = "firestore://PROJECT[/COLLECTION][?database=ID]"


@dataclass(frozen=True)
class FirestoreAddress:
    """A collection of jobs in a database of a project."""

    project: str
    collection: str = "jobs"
    database: str = "(default)"

    @classmethod
    def parse(cls, url: str) -> FirestoreAddress:
        """Parse ``firestore://PROJECT[/COLLECTION][?database=ID]``. Raises: ConfigurationError."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        database = options.pop("database", "(default)")
        if options:
            raise ConfigurationError(f"{url} has an unknown option {min(options)!r}; write {_FORM}")
        # ``parts.netloc``, because ``hostname`` is lower-cased and ends at the colon of a domain-scoped project
        return cls(unquote(parts.netloc), unquote(parts.path).strip("/") or "jobs", database).checked()

    def checked(self) -> FirestoreAddress:
        """Return this address after checking its parts. Raises: ConfigurationError."""
        if not _PROJECT.fullmatch(self.project):
            rule = "must be a lower-case id of letters, digits and dashes"
            raise ConfigurationError(f"a Firestore project {rule}, not {self.project!r}; write {_FORM}")
        if not _DATABASE.fullmatch(self.database):
            rule = "must be '(default)' or a lower-case id"
            raise ConfigurationError(f"a Firestore database {rule}, not {self.database!r}; write {_FORM}")
        if not _COLLECTION.fullmatch(self.collection) or re.fullmatch(r"\.{1,2}|__.*__", self.collection):
            rule = "must be a single name without '/'"
            raise ConfigurationError(f"a Firestore collection {rule}, not {self.collection!r}; write {_FORM}")
        return self

    @property
    def database_path(self) -> str:
        """The database's resource name."""
        return f"projects/{self.project}/databases/{self.database}"

    @property
    def root(self) -> str:
        """The parent of the root collections."""
        return f"{self.database_path}/documents"

    def __str__(self) -> str:
        database = "" if self.database == "(default)" else f"?database={self.database}"
        return f"firestore://{self.project}/{self.collection}{database}"


def emulator() -> str | None:
    """Return ``host:port`` of the emulator that the environment names, or None."""
    return os.environ.get(EMULATOR_VARIABLE) or None
