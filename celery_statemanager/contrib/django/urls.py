"""The URLs of the pages of jobs: ``path("jobs/", include("celery_statemanager.contrib.django.urls"))``."""

from __future__ import annotations

from django.urls import re_path

from celery_statemanager.contrib.django import views

app_name = "celery_statemanager"

urlpatterns = [re_path(r"^(?P<path>.*)$", views.jobs, name="jobs")]
