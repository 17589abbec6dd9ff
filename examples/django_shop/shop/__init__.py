"""A shop. Django and Celery load the app of Celery from here."""

from shop.celery import app

__all__ = ("app",)
