"""An ETL job of several processes without Celery."""
