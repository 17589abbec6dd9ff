"""A model that represents the jobs of the store, so that they have permissions and appear in the admin."""

from __future__ import annotations

from typing import Any

from django.db import models


class _NoRows(models.Manager):  # type: ignore[misc] # Django has no types
    """A manager that returns no rows, because jobs are read from the store."""

    def get_queryset(self) -> Any:
        return super().get_queryset().none()


class Job(models.Model):  # type: ignore[misc] # Django has no types
    """A job. This model contains only permissions. Read and change jobs with ``states.job`` and ``states.jobs``."""

    objects = _NoRows()

    class Meta:
        """The options. Django creates no table for this model."""

        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = (
            ("cancel_job", "Can cancel job"),
            ("pause_job", "Can pause and resume job"),
            ("rerun_job", "Can rerun job"),
        )

    def __str__(self) -> str:
        return str(self.pk)
