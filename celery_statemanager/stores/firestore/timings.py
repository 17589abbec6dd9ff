"""The periods of a Firestore store. Each bounds either what a fact may be late by, or what finding it out costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Periods in seconds, where not said otherwise.

    Attributes:
        job_memory: how long a write may use a job as this process last saw it.
        check_after: after which time a sweep checks whether the latches of a changed job were decided.
        recheck_after: the shortest time after which it checks an unsettled job again.
        straggler_grace: how long after its deletion a job may still be written to by who does not know of it.
        activity_every: by how much a job's last activity may be too early; the contract allows a minute.
        first_silence: how long a new stream may be silent until it is opened again.
        silence: the same for a stream that has delivered something.
        stream_check: how often a waiting reader checks that.
        poll_every: the shortest pause between two reads of a watch that polls.
        polled_documents: the number of documents that such a watch reads in a second; each read is billed for every
            cell of the scope, as no index lists what changed.
    """

    job_memory: float = 5.0
    check_after: float = 60.0
    recheck_after: float = 60.0
    straggler_grace: float = 60.0
    activity_every: float = 45.0
    first_silence: float = 20.0
    silence: float = 120.0
    stream_check: float = 30.0
    poll_every: float = 1.0
    polled_documents: float = 100.0


def in_microseconds(seconds: float) -> int:
    """Return a period in the unit of stored times."""
    return round(seconds * 1_000_000)
