"""Translation of psycopg's errors into ``StoreError`` and ``StoreUnavailable``, with a hint on what to do."""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg

from celery_statemanager.errors import StoreError, StoreUnavailable

NEVER, PASSES = StoreError, StoreUnavailable
"""Distinguish errors that need a correction from errors that pass, for example when the server recovers."""


class CallTimeout(psycopg.OperationalError):
    """The server did not answer within the timeout of the call."""


class _Rule(NamedTuple):
    """A kind of error.

    Attributes:
        pattern: matches ``"SQLSTATE text"``. Errors of a login have no code, only the server's text.
        raised: ``NEVER`` or ``PASSES``.
        hint: the rest of a sentence that begins with the address of the server: the problem, and what to do.
    """

    pattern: str
    raised: type[StoreError]
    hint: str


_RULES = (
    _Rule(
        r"^28|password authentication failed|no password supplied|authentication failed|role \"[^\"]*\" does not exist",
        NEVER,
        "refused the user name or password: correct them in the URL",
    ),
    _Rule(
        r"^3D000|database \"[^\"]*\" does not exist", NEVER, "has no database of this name: create it, or correct it"
    ),
    _Rule(
        r"server does not support SSL|SSL error|certificate|root\.crt|sslmode|no encryption|no pg_hba\.conf entry",
        NEVER,
        "and this client do not agree on encryption or on who may connect: check ?sslmode= and the server's "
        "pg_hba.conf",
    ),
    _Rule(
        r"^25006",
        PASSES,
        "is a read-only standby: wait for the failover, or connect to the primary (?target_session_attrs=read-write)",
    ),
    _Rule(
        r"^42501", NEVER, "does not permit the user a required operation: grant the rights that docs/stores.md lists"
    ),
    _Rule(r"^3F000", NEVER, "has no schema of this name: create it, or correct ?schema="),
    _Rule(
        r"^(42P01|42883|42703)",
        NEVER,
        "has lost tables of the store: restore them, or run celery migrate-state --schema",
    ),
    _Rule(r"^53300|too many clients|remaining connection slots|no more connections", PASSES, "has no free connection"),
    _Rule(r"^53100", PASSES, "has no space left on its disk: nothing was written, free some space"),
    _Rule(r"^53", PASSES, "lacks resources"),
    _Rule(
        r"^55P03",
        PASSES,
        "did not grant a lock within {timeout:g} s: find the transaction that holds it in pg_locks, or increase the "
        "store timeout",
    ),
    _Rule(r"^57014|query_wait_timeout", PASSES, "cancelled the query because of a time limit or a request"),
    _Rule(r"^57P|shutting down|starting up|recovery mode", PASSES, "is being stopped or started: wait"),
    _Rule(r"^25P03", PASSES, "ended the transaction because it was idle: increase idle_in_transaction_session_timeout"),
    _Rule(r"^40", PASSES, "ended the transaction because of a concurrent one: try again"),
    _Rule(r"^08|^ ", PASSES, "cannot be reached or closed the connection"),
)


def translate(error: psycopg.Error, shown: str, timeout: float) -> StoreError:
    """Create the store's exception for an error of psycopg; the message says what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, (CallTimeout, psycopg.errors.ConnectionTimeout)):
        return StoreUnavailable(f"{shown} did not answer within {timeout:g} s: check the server and the network")
    is_network = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    code = error.sqlstate or ("" if is_network else "client")
    for rule in _RULES:
        if re.search(rule.pattern, f"{code} {text}"):
            return rule.raised(f"{shown} {rule.hint.format(timeout=timeout)} ({text})")
    raised = StoreUnavailable if isinstance(error, psycopg.OperationalError) else StoreError
    return raised(f"{shown} refused a call: {text or type(error).__name__}")


def is_lost(error: psycopg.Error) -> bool:
    """Return whether the process should open its connections again after an error.

    This includes the refusal of a standby, because a new connection may reach the primary.
    """
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or error.sqlstate == "25006"
