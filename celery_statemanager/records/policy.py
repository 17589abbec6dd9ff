"""The conditions under which a job is cancelled by itself (rules R22, R23). Pure values."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a job.

    Attributes:
        max_failed: the number of failed rows that each generation tolerates; None for no limit.
        deadline: when the job is cancelled unless it has settled, in microseconds since the epoch; None for never.
        lifetime: the microseconds from the beginning of a generation to its deadline; None if the deadline was given
            as a time.
    """

    max_failed: int | None = None
    deadline: int | None = None
    lifetime: int | None = None

    def has_expired(self, now: int) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def renewed(self, now: int) -> Policy:
        """Return the policy of a generation that begins now: a deadline given as a time is dropped if it has passed."""
        if self.lifetime is not None:
            return replace(self, deadline=now + self.lifetime)
        return replace(self, deadline=None) if self.has_expired(now) else self
