"""Celery: the only floor, with ``cli``, that imports it."""
