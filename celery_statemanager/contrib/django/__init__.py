"""celery-statemanager in a Django project: states in its databases, submission in its transactions, admin pages."""
