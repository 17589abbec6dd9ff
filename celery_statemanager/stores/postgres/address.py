"""Parsing of a store's URL into connection parameters and options of the store, without connecting."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.stores import checked_timeout, masked

DEFAULT_PREFIX = "statemanager_"
_OWN = ("schema", "prefix", "timeout")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class PostgresAddress:
    """The location of the tables.

    Attributes:
        parameters: the parameters of libpq: host, port, user, password, dbname, sslmode, …
        schema: the schema that contains the tables; None for the first one in the connection's ``search_path``.
        prefix: the beginning of the name of each table.
        timeout: seconds after which a call fails.
    """

    parameters: dict[str, Any] = field(default_factory=dict, repr=False)
    schema: str | None = None
    prefix: str = DEFAULT_PREFIX
    timeout: float = 5.0

    @property
    def shown(self) -> str:
        """The server and the database as error messages show them, without the password."""
        found = {name: self.parameters.get(name) for name in ("host", "port", "dbname", "user")}
        host = found["host"] or self.parameters.get("hostaddr") or "localhost"
        port = f":{found['port']}" if found["port"] and "," not in str(found["port"]) else ""
        user = f"{found['user']}@" if found["user"] else ""
        return f"postgresql://{user}{host}{port}/{found['dbname'] or ''}"

    def conninfo(self) -> str:
        """Return the connection string. It contains the password."""
        defaults = {
            "connect_timeout": max(1, math.ceil(self.timeout)),
            "fallback_application_name": "celery-statemanager",
        }
        return make_conninfo("", **{**defaults, **self.parameters, "client_encoding": "UTF8"})


def parse(url: str, timeout: float, options: dict[str, Any]) -> PostgresAddress:
    """Parse a URL and merge the options given beside it. Raises: ConfigurationError."""
    try:
        query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
        own: dict[str, Any] = {name: value for name, value in query if name in _OWN}
        own |= {name: options[name] for name in options if name in _OWN}
        rest = urlencode([each for each in query if each[0] not in _OWN])
        parameters = dict(conninfo_to_dict(f"{url.partition('?')[0]}?{rest}"))
        parameters |= {name: value for name, value in options.items() if name not in _OWN}
        make_conninfo("", **parameters)
    except (ValueError, TypeError, psycopg.Error):  # the text may show the password
        raise ConfigurationError(
            f"{masked(url)} cannot be used: check its host, port, database and options; a password with special "
            "characters must be percent-encoded"
        ) from None
    return PostgresAddress(
        parameters,
        _checked_name("schema", own["schema"], url) if own.get("schema") is not None else None,
        _checked_name("prefix", own["prefix"], url) if own.get("prefix") is not None else DEFAULT_PREFIX,
        checked_timeout(_seconds(own["timeout"]) if "timeout" in own else timeout),
    )


def _checked_name(option: str, value: Any, url: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigurationError(
            f"{masked(url)} cannot be used: the {option} must consist of at most 40 letters, digits and underscores, "
            f"not {value!r:.60}"
        )
    return value


def _seconds(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # refused by ``checked_timeout``
