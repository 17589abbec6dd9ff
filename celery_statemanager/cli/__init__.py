"""``celery … monitor-state`` and the other commands, one module each."""
