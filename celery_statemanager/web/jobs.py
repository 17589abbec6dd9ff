"""The list of jobs, and one job."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from celery_statemanager.errors import JobNotFound
from celery_statemanager.explain import JobDiagnosis
from celery_statemanager.inspection import MOST_FAILED, read_job, reason_to_wire
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.limits import short_repr
from celery_statemanager.overview import Overview, overview
from celery_statemanager.web.errors import bad_request
from celery_statemanager.web.site import Site, number_in
from celery_statemanager.web.wire import JSON, overview_to_json, view_to_json

MOST_JOBS = 200
"""Maximum number of jobs in a page."""

MOST_GROUPED = 10_000
"""Maximum number of failed cells that a request groups by cause. Each costs one read of the store."""

LONGEST_SEARCH = 200


async def list_jobs(site: Site, request: Request) -> JSON:
    """Return a page of the jobs that the request may view, the newest first."""
    await site.access.require(request, "list")
    query = request.query_params
    limit, cursor, text = number_in(request, "limit", 50, MOST_JOBS), query.get("cursor"), query.get("text")
    if text is not None and len(text) > LONGEST_SEARCH:
        raise bad_request(f"text has at most {LONGEST_SEARCH} characters, not {len(text)}")
    try:
        before = None if cursor is None else site.cursors.unseal(cursor)
    except ValueError:
        raise bad_request(
            f"cursor must be one that an earlier page has returned, not {short_repr(cursor)}; let all processes use "
            "the same statemanager_web_secret",
            "cursor",
        ) from None
    try:
        page = await run_in_threadpool(site.states.jobs, text, query.get("phase") or None, limit, before)
    except ValueError as error:
        raise bad_request(error) from None
    jobs = await site.access.viewable(request, page.jobs)
    shown = await run_in_threadpool(_overviews, site, jobs)
    following = None if page.cursor is None else site.cursors.seal(page.cursor)
    return JSON({"jobs": [overview_to_json(each) for each in shown], "cursor": following})


def _overviews(site: Site, jobs: list[Job]) -> list[Overview]:
    found = []
    for job in jobs:
        try:
            found.append(overview(site.store, job._record.ref))
        except JobNotFound:  # deleted since it was listed
            continue
    return found


async def show_job(site: Site, request: Request) -> JSON:
    """Return everything about one job, except its cells, and the actions that the request may do."""
    job = await site.find(request)
    most = number_in(request, "failures", MOST_FAILED, MOST_GROUPED)
    actions = ("cancel", "pause", "rerun")
    allowed = await site.access.allowed(request, [(action, job) for action in actions])
    view = await run_in_threadpool(read_job, site.store, job._record, 0, most)
    return JSON({**view_to_json(view), "actions": [action for action, may in zip(actions, allowed) if may]})


async def explain_job(site: Site, request: Request) -> JSON:
    """Return why a job has not settled."""
    job = await site.find(request)

    def explained() -> dict[str, object]:
        diagnosis = JobDiagnosis(site.store, job._record.ref)
        return {"reasons": [reason_to_wire(each) for each in diagnosis.reasons()], "settled": diagnosis.job.settled}

    return JSON(await run_in_threadpool(explained))
