"""Migrations: numbered, idempotent steps that convert jobs and their states to a later schema.

``registry`` defines the steps, ``runner`` applies them to jobs.
"""

from celery_statemanager.migrations.registry import STEPS, Steps
from celery_statemanager.migrations.runner import MigrationReport, Skip, migrate_jobs

__all__ = ("STEPS", "MigrationReport", "Skip", "Steps", "migrate_jobs")
