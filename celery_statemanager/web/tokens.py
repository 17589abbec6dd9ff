"""Signed tokens that grant some actions on one incarnation of a job until they expire."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from itsdangerous import BadSignature, URLSafeSerializer

from celery_statemanager.integration.app import StateManager
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.web.sealing import PROCESS_SECRET, derived_key

ACTIONS = ("view", "cancel", "pause", "rerun")
"""The actions on a job that a token can grant."""

PREFIX = "csm1."
"""The prefix of each token. Bearer tokens without it belong to the application."""

LONGEST = 366 * 86_400.0
"""Maximum validity of a token in seconds."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token grants.

    Attributes:
        expires_at: seconds since the epoch.
    """

    ref: JobRef
    actions: frozenset[str]
    expires_at: float

    def allows(self, action: str, job: JobRecord) -> bool:
        """Return whether the token grants an action on a job."""
        return action in self.actions and job.ref == self.ref


def secret_of(states: StateManager) -> str:
    """Return the configured secret; without one, the secret of this process."""
    return states.settings.web_secret or PROCESS_SECRET


def web_token(states: StateManager, job: JobRecord, expires: float, actions: Iterable[str]) -> str:
    """Create a token; see ``StateManager.web_token``. Raises: TypeError, ValueError."""
    if isinstance(expires, bool) or not isinstance(expires, (int, float)):
        raise TypeError(f"expires must be a number of seconds, not {expires!r:.60}")
    if not (math.isfinite(expires) and 0 < expires <= LONGEST):
        raise ValueError(f"expires must be above 0 and at most {LONGEST:.0f} seconds, not {expires!r:.60}")
    names = [actions] if isinstance(actions, str) else list(actions)
    unknown = [name for name in names if name not in ACTIONS]
    if unknown or not names:
        raise ValueError(f"actions must be some of {', '.join(ACTIONS)}, not {actions!r:.60}")
    given = sorted({*names}, key=ACTIONS.index)
    content = [*job.key, job.incarnation, given, math.ceil(time.time() + expires)]
    return PREFIX + str(_serializer(secret_of(states)).dumps(content))


def read_token(secret: str, token: str) -> Grant:
    """Return what a token grants. Raises: ValueError – it is invalid or has expired."""
    signed = token.removeprefix(PREFIX) if token.startswith(PREFIX) else ""
    try:
        job_id, run_token, incarnation, actions, expires_at = _serializer(secret).loads(signed)
    except BadSignature:
        raise ValueError(
            "the token is invalid: it was changed, or signed with another secret; request a new link, and let all "
            "processes use the same statemanager_web_secret"
        ) from None
    if time.time() >= expires_at:
        raise ValueError("the token has expired; request a new link")
    return Grant(JobRef(JobKey(job_id, run_token), incarnation), frozenset(actions), expires_at)


def _serializer(secret: str) -> URLSafeSerializer:
    return URLSafeSerializer(derived_key(secret, "token"), salt="job")
