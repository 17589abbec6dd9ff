"""States in Redis, Valkey, or a cluster of them. The only package that imports ``redis``."""

from celery_statemanager.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
