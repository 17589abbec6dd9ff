"""One configuration of Django for all tests of a process: it can be configured only once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from postgres_kit import PostgresServer

HOME = Path(tempfile.mkdtemp(prefix="django-"))

SQLITE = "django.db.backends.sqlite3"


@contextmanager
def rolled_back() -> Iterator[None]:
    """Run a block in a transaction that is rolled back."""
    from django.db import transaction

    with suppress(ZeroDivisionError), transaction.atomic():
        yield
        raise ZeroDivisionError


def use(alias: str, **settings: Any) -> None:
    """Change the settings of an alias, as a test runner does. The class of its connections follows the engine."""
    from django.db import connections

    connections[alias].close()
    connections[alias].settings_dict.update(settings)
    del connections[alias]


def new_database(server: PostgresServer, name: str) -> dict[str, str]:
    """Create a database on a server of PostgreSQL, and return its settings of Django."""
    server.execute(f"CREATE DATABASE {name}")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": str(server.port),
    }


def at_file(alias: str, folder: Path) -> None:
    """Point an alias to a file in a folder, with a table of the application."""
    from django.db import connections

    use(alias, ENGINE=SQLITE, NAME=folder / f"{alias}.sqlite3")
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, tag TEXT)")  # named as one of a store
    connections[alias].close()


def set_up_django() -> None:
    """Configure Django with some databases. Tests set the names of their files."""
    if settings.configured:
        return
    settings.configure(
        ALLOWED_HOSTS=["*"],
        CELERY_STATEMANAGER_STORE_URL="django://default",
        DATABASES={
            "default": {"ENGINE": SQLITE, "NAME": HOME / "default.sqlite3"},
            "other": {"ENGINE": SQLITE, "NAME": HOME / "other.sqlite3"},
            "memory": {"ENGINE": SQLITE, "NAME": ":memory:"},
            "dummy": {"ENGINE": "django.db.backends.dummy"},
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "celery_statemanager.contrib.django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        ROOT_URLCONF="django_urls",
        SECRET_KEY="not secret",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        USE_TZ=True,
    )
    django.setup()
