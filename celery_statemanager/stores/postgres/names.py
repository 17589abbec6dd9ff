"""The names of the tables in one schema, and the SQL texts that contain them."""

from __future__ import annotations

import re

TABLES = (
    "meta",
    "job",
    "tag",
    "tally",
    "gap",
    "cell",
    "garbage",
    "block",
    "draft",
    "outbox",
    "claim",
    "returned",
    "value",
    "worker",
    "watcher",
)
SHARDS = 16
"""The rows of a column are divided among this many tallies, so that concurrent writers rarely wait for one another."""


class Names:
    """The names of one store's tables.

    Args:
        schema: the schema that contains the tables; None for the first one in the connection's ``search_path``.
        prefix: the beginning of the name of each table and function.
    """

    def __init__(self, schema: str | None = None, prefix: str = "statemanager_") -> None:
        self.schema = schema
        self.prefix = prefix
        self.names = {name: self.qualified(name) for name in (*TABLES, "put")}
        self.names["channel"] = prefix.replace("'", "")
        self._texts: dict[str, str] = {}

    def qualified(self, name: str) -> str:
        """Return the quoted name of a table or a function."""
        name = quoted(self.prefix + name)
        return name if self.schema is None else f"{quoted(self.schema)}.{name}"

    def index(self, name: str) -> str:
        """Return the quoted name of an index, which is in the schema of its table."""
        return quoted(self.prefix + name)

    def fill(self, template: str) -> str:
        """Return an SQL text in which ``{name}`` is replaced by the name of each table and function."""
        text = self._texts.get(template)
        if text is None:
            text = self._texts[template] = re.sub(r"\{(\w+)\}", lambda match: self.names[match[1]], template)
        return text


def quoted(name: str) -> str:
    """Return an identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'
