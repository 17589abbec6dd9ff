"""The conditions under which a job is cancelled by itself (rules R22, R23). Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a job.

    Attributes:
        max_failed: the number of failed rows that each generation tolerates; None for no limit.
    """

    max_failed: int | None = None
