"""``celery … monitor-state`` and the other commands: one file a command."""
