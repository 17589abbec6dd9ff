"""The periods of a Firestore store. Each balances a delay against the cost of calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Periods in seconds, unless stated otherwise.

    Attributes:
        job_memory: how long a write may use the cached record of a job.
        check_after: when a sweep checks the latches of a changed job.
        recheck_after: the shortest time until the next check of an unsettled job.
        activity_every: the largest error of a job's last activity; the contract allows a minute.
        claim_every: the period at which the ends of rows write the claims of a job, if rows end faster for long.
        claim_burst: how far the writes may be ahead of that period.
        claim_pause: the shortest time between two of them while no published row waits to begin.
        purge_grace: how long after a deletion late writes may still leave documents.
        first_silence: how long a stream may be silent before it has delivered its first snapshot. It is then reopened.
        silence: how long a stream may be silent after its first snapshot before it is reopened.
        stream_check: how often a waiting reader checks the stream for silence.
        poll_every: the shortest pause between two reads of a polling watch.
        polled_documents: the maximum number of documents a second that a polling watch reads. Firestore bills each
            poll for every cell of the scope, because no index lists the changed ones.
    """

    job_memory: float = 5.0
    check_after: float = 60.0
    recheck_after: float = 60.0
    activity_every: float = 45.0
    claim_every: float = 1.0
    claim_burst: float = 20.0
    claim_pause: float = 0.2
    purge_grace: float = 60.0
    first_silence: float = 20.0
    silence: float = 120.0
    stream_check: float = 30.0
    poll_every: float = 1.0
    polled_documents: float = 100.0


def in_microseconds(seconds: float) -> int:
    """Convert seconds to the unit of stored times."""
    return round(seconds * 1_000_000)
