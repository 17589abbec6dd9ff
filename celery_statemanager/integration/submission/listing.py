"""Lists of the jobs of an app, page by page."""

from __future__ import annotations

from dataclasses import dataclass

from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.limits import check_page_size, check_search
from celery_statemanager.overview import Phase, Wanted, newest_page


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, the newest first.

    Attributes:
        cursor: the position of the next page; None at the end.
    """

    jobs: list[Job]
    cursor: str | None


def list_jobs(tracker: Tracker, text: str | None, phase: str | None, limit: int, cursor: str | None) -> JobPage:
    """Return a page of jobs; see ``StateManager.jobs``."""
    wanted = Wanted(check_search(text), phases=frozenset() if phase is None else frozenset({Phase.parse(phase)}))
    records, following = newest_page(tracker.store, wanted, check_page_size(limit), cursor)
    return JobPage([Job(tracker, record) for record in records], following)
