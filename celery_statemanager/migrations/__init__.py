"""Migrations: numbered, idempotent steps that bring jobs and their states to a later schema.

``registry`` holds steps, ``shipped`` has those of this release, ``runner`` takes jobs through them.
"""

from celery_statemanager.migrations.registry import STEPS, Steps
from celery_statemanager.migrations.runner import MigrationReport, Skip, migrate_jobs

__all__ = ("STEPS", "MigrationReport", "Skip", "Steps", "migrate_jobs")
