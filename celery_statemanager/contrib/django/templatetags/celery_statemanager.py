"""``{% load celery_statemanager %}{% celery_job job %}``: the live bars of a job."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from django import template
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html

from celery_statemanager.contrib.django.tracking import current_states
from celery_statemanager.errors import ConfigurationError, JobNotFound

register = template.Library()

VALID = 86_400
"""Seconds for which the page may read the job, unless the tag has another ``expires``."""


@register.simple_tag  # type: ignore[untyped-decorator] # Django has no types
def celery_job(job: Any, run_token: str | None = None, *, expires: float = VALID, compact: bool = False) -> Any:
    """Return the element that shows the live bars of a job.

    The URL of the element contains a token, so that everybody who can open the page can see the bars.

    Args:
        job: a ``Job``, or a job_id. If the job does not exist, the tag renders nothing.
        run_token: the run token, if ``job`` is a job_id.
        expires: the number of seconds for which the token is valid.
        compact: whether to draw one bar for all tags.
    """
    if not job:
        return ""
    job_id, run = str(job), getattr(job, "run_token", run_token)
    try:
        token = current_states().web_token(job, run, expires=expires)
    except JobNotFound:
        return ""
    root = _root()
    query = urlencode({"token": token} if run is None else {"run_token": run, "token": token})
    return format_html(
        '<script type="module" src="{}static/celery-job.js"></script>'
        '<celery-job src="{}api/jobs/{}?{}"{}></celery-job>',
        root,
        root,
        quote(job_id, safe=""),
        query,
        " compact" if compact else "",
    )


def _root() -> str:
    """Return the URL of the pages of jobs. Raises: ConfigurationError."""
    try:
        return str(reverse("celery_statemanager:jobs", kwargs={"path": ""}))
    except NoReverseMatch:
        raise ConfigurationError(
            "{% celery_job %} needs the pages of jobs: add to your URLs "
            "path('jobs/', include('celery_statemanager.contrib.django.urls'))"
        ) from None
