"""The app of Celery and its StateManager."""

import os

from celery import Celery

from celery_statemanager import StateManager

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["shop"])
states = StateManager(app)
