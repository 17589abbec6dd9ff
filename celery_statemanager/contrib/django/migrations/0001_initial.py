"""Create the tables of states, and the model with the permissions."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from celery_statemanager.contrib.django.store import DjangoStore
from celery_statemanager.errors import ConfigurationError


def create_tables(_apps: Any, editor: Any) -> None:
    """Create the tables if the database can keep states. Do nothing in other databases."""
    try:
        store = DjangoStore(editor.connection.alias)
        store.create_tables()
    except ConfigurationError:
        return
    store.close()


class Migration(migrations.Migration):  # type: ignore[misc] # Django has no types
    """The first schema. Later, the store upgrades SQLite at first use, and ``migrate-state --schema`` PostgreSQL."""

    initial = True
    atomic = False  # the tables are created on a connection of the store
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Job",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))
            ],
            options={
                "managed": False,
                "base_manager_name": "objects",
                "default_permissions": ("view",),
                "permissions": (
                    ("cancel_job", "Can cancel job"),
                    ("pause_job", "Can pause and resume job"),
                    ("rerun_job", "Can rerun job"),
                ),
            },
        ),
        migrations.RunPython(create_tables, migrations.RunPython.noop),
    )
