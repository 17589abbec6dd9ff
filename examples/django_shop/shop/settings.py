"""The settings of the shop, for a demonstration: use other ones in production."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
import broker  # a broker in a folder, beside this example

HOME = Path(os.environ.get("SHOP_HOME", ".shop")).resolve()
HOME.mkdir(parents=True, exist_ok=True)

DEBUG = True
SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "only for this demonstration")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ASGI_APPLICATION = "shop.asgi.application"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "celery_statemanager.contrib.django",
    "shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
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
]

if "SHOP_POSTGRES" in os.environ:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["SHOP_POSTGRES"],
            "HOST": os.environ.get("PGHOST", ""),
            "PORT": os.environ.get("PGPORT", ""),
            "USER": os.environ.get("PGUSER", ""),
            "PASSWORD": os.environ.get("PGPASSWORD", ""),
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": HOME / "shop.sqlite3",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    }

CELERY_STATEMANAGER_STORE_URL = "django://default"
CELERY_STATEMANAGER_LEASE = 6.0  # short, for the demonstration
CELERY_STATEMANAGER_SWEEP_INTERVAL = 1.5
CELERY_STATEMANAGER_PROGRESS_INTERVAL = 0.2
CELERY_TASK_IGNORE_RESULT = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
if "SHOP_BROKER" in os.environ:
    CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
else:
    CELERY_BROKER_URL = "filesystem://"
    CELERY_BROKER_TRANSPORT = "broker:Transport"
    CELERY_BROKER_TRANSPORT_OPTIONS = broker.settings(HOME)["broker_transport_options"]
