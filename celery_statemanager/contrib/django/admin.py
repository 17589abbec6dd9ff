"""The jobs in the admin: a list with bars, and the live page of each job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.template.response import TemplateResponse
from django.urls import path, re_path, reverse

from celery_statemanager.contrib.django import access, models, views
from celery_statemanager.contrib.django.tracking import current_states
from celery_statemanager.errors import JobNotFound
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.listing import JobPage
from celery_statemanager.overview import Overview, Phase, overview

MOST_JOBS = 50
"""The number of jobs on a page of the list."""


@dataclass(frozen=True)
class Row:
    """A job in the list."""

    job: Job
    shown: Overview
    url: str

    @property
    def percent(self) -> int:
        """The share of the job that is done, in percent, rounded down."""
        return int(self.shown.summary.fraction * 100)


@admin.register(models.Job)
class JobAdmin(admin.ModelAdmin):  # type: ignore[misc] # Django has no types
    """The list of jobs, and below ``web/`` the pages of jobs. Permissions define what a staff user may do."""

    change_list_template = "admin/celery_statemanager/job/list.html"

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        """Return the URLs of the list and of the pages."""
        listing = self.admin_site.admin_view(self.changelist_view)
        return [
            path("", listing, name="celery_statemanager_job_changelist"),
            re_path(r"^web/(?P<path>.*)$", self._web_view(), name="celery_statemanager_job_web"),
        ]

    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show a page of jobs, the newest first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        text, phase, cursor = (request.GET.get(name) or None for name in ("q", "phase", "cursor"))
        failure = None
        try:
            page = current_states().jobs(text, phase, MOST_JOBS, cursor)
        except ValueError as error:
            page, failure = JobPage([], None), str(error)
        kept = {name: value for name, value in (("q", text), ("phase", phase)) if value}
        following = page.cursor and "?" + urlencode({**kept, "cursor": page.cursor})
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": "Celery jobs",
            "rows": self._rows(page.jobs),
            "failure": failure,
            "following": following,
            "phases": [each.value for each in Phase],
            "phase": phase,
            "text": text or "",
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.change_list_template, context)

    def _rows(self, jobs: list[Job]) -> list[Row]:
        root = reverse(f"{self.admin_site.name}:celery_statemanager_job_web", kwargs={"path": ""})
        store, rows = current_states().store, []
        for job in jobs:
            query = "" if job.run_token is None else "?" + urlencode({"run_token": job.run_token})
            try:
                rows.append(Row(job, overview(store, job._record.ref), f"{root}jobs/{quote(job.id, safe='')}{query}"))
            except JobNotFound:  # deleted after it was listed
                continue
        return rows

    def _web_view(self) -> Any:
        """Return the view of the pages of jobs. It requires the permission to use this admin site."""

        async def web(request: Any, path: str) -> Any:
            if not await sync_to_async(self.admin_site.has_permission)(request):
                login = reverse(f"{self.admin_site.name}:login")
                return await sync_to_async(redirect_to_login)(request.get_full_path(), login)
            return await views.serve(request, path, access.by_permission)

        return views.without_csrf_token(web)
