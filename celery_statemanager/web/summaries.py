"""The summaries of a job as they change. All readers of a job in one process share one watch, in any event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from dataclasses import dataclass

from celery_statemanager import aggregate
from celery_statemanager.codec import compact
from celery_statemanager.errors import JobNotFound, StoreError, SubscriptionLost
from celery_statemanager.feed import Feed
from celery_statemanager.hub import LoopTurns
from celery_statemanager.models import Scope
from celery_statemanager.overview import overview
from celery_statemanager.records import JobRef
from celery_statemanager.stores import Store
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
    """Watches a job in a thread, and counts its cells after changes, at most twice a second."""

    def __init__(self, store: Store, ref: JobRef) -> None:
        self.users = 0
        self._store, self._ref = store, ref
        self._closed = threading.Event()
        self._feed: Feed | None = None
        self._snapshot = Snapshot()
        self._turns: dict[asyncio.AbstractEventLoop, LoopTurns] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="statemanager-summaries", daemon=True).start()

    @property
    def snapshot(self) -> Snapshot:
        """The newest summary."""
        return self._snapshot

    async def changed(self) -> None:
        """Wait until the snapshot may have changed. The caller compares its number before each wait."""
        loop = asyncio.get_running_loop()
        with self._lock:
            turns = self._turns.setdefault(loop, LoopTurns(loop))
        await turns.take(after_change=True)

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
        with self._lock:
            turns = list(self._turns.items())
        for loop, each in turns:
            if not each.notify():
                with self._lock:
                    self._turns.pop(loop, None)


class SummaryFeeds:
    """The feeds of this process, by store and job."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget the feeds of the parent in a forked child, which has none of their threads."""
        self._lock = threading.Lock()
        self._feeds: weakref.WeakKeyDictionary[Store, dict[JobRef, SummaryFeed]] = weakref.WeakKeyDictionary()

    def acquire(self, store: Store, ref: JobRef) -> SummaryFeed:
        """Return the feed of a job. Start one if none is running."""
        with self._lock:
            feeds = self._feeds.setdefault(store, {})
            feed = feeds.get(ref)
            if feed is None or feed.snapshot.end is not None:
                feed = feeds[ref] = SummaryFeed(store, ref)
            feed.users += 1
            return feed

    def release(self, store: Store, ref: JobRef, feed: SummaryFeed) -> None:
        """End the use of a feed. The last user closes it."""
        with self._lock:
            feed.users -= 1
            if feed.users:
                return
            feeds = self._feeds.get(store, {})
            if feeds.get(ref) is feed:
                del feeds[ref]
        feed.close()


feeds = SummaryFeeds()
os.register_at_fork(after_in_child=feeds.forget)
