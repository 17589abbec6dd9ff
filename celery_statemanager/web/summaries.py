"""The summaries of a job as they change. All readers of a job in one process share one watch, in any event loop."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from celery_statemanager import aggregate
from celery_statemanager.codec import compact
from celery_statemanager.errors import JobNotFound, StoreError, SubscriptionLost
from celery_statemanager.feed import Feed
from celery_statemanager.models import Scope
from celery_statemanager.overview import overview
from celery_statemanager.records import JobRef
from celery_statemanager.sharing import Sharing
from celery_statemanager.stores import Store
from celery_statemanager.turns import Turns
from celery_statemanager.web.errors import public_message
from celery_statemanager.web.wire import summary_to_json

INTERVAL = 0.5
"""Seconds between two summaries."""

_LONGEST_READ = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest summary.

    Attributes:
        number: increases by one with each summary that differs from the previous one.
        text: JSON text; empty before the first summary.
        end: why no further summary follows: ``settled``, ``deleted`` or ``unavailable``; None if one may.
        detail: the generation and the phase of a settled job, or the message of an error.
    """

    number: int = 0
    text: str = ""
    end: str | None = None
    detail: dict[str, object] | None = None


class SummaryFeed:
    """Watches a job in a thread, and counts its cells after changes, at most twice a second.

    Attributes:
        users: the number of its readers.
        turns: those of its readers. A new snapshot is reported to them.
    """

    def __init__(self, store: Store, ref: JobRef) -> None:
        self.users = 0
        self._store, self._ref = store, ref
        self._closed = threading.Event()
        self._feed: Feed | None = None
        self._snapshot = Snapshot()
        self.turns = Turns()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        """Whether no further summary follows."""
        return self._snapshot.end is not None

    def start(self) -> None:
        """Start the thread, unless it has started."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="statemanager-summaries", daemon=True)
                self._thread.start()

    @property
    def snapshot(self) -> Snapshot:
        """The newest summary."""
        return self._snapshot

    def close(self) -> None:
        """End the thread without waiting for it."""
        self._closed.set()
        with self._lock:
            feed = self._feed
        if feed is not None:
            feed.close()

    def _run(self) -> None:
        try:
            self._follow()
        except JobNotFound:
            self._publish(end="deleted", detail={})
        except (StoreError, SubscriptionLost) as error:
            self._publish(end="unavailable", detail={"message": public_message(error)})
        except Exception as error:
            self._publish(end="unavailable", detail={"message": f"cannot read the job: {type(error).__name__}"})
            raise
        finally:
            self.close()

    def _follow(self) -> None:
        feed = Feed(self._store, self._ref, Scope())
        with self._lock:
            self._feed = feed
        while not self._closed.is_set() and not self._count():
            self._closed.wait(INTERVAL)
            while not self._closed.is_set():
                batch = feed.read(_LONGEST_READ)
                if not feed.connected:
                    raise SubscriptionLost(self._ref.key.job_id, "the store is unavailable")
                if batch.states or batch.job_changed or batch.resync:
                    break

    def _count(self) -> bool:
        """Publish the current summary. Return whether the job has settled."""
        shown = overview(self._store, self._ref)
        has_settled = aggregate.settled(shown.job, shown.columns)
        detail: dict[str, object] = {"generation": shown.job.generation.number, "phase": shown.phase.value}
        self._publish(
            compact(summary_to_json(shown)), "settled" if has_settled else None, detail if has_settled else None
        )
        return has_settled

    def _publish(
        self, text: str | None = None, end: str | None = None, detail: dict[str, object] | None = None
    ) -> None:
        last = self._snapshot
        text = last.text if text is None else text
        self._snapshot = Snapshot(last.number + (text != last.text), text, end, detail)
        self.turns.notify()


feeds: Sharing[JobRef, SummaryFeed] = Sharing(SummaryFeed)
"""The feeds of this process, by job."""
