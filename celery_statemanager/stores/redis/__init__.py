"""The store on Redis or Valkey, single server or cluster. Only this package imports ``redis``."""

from celery_statemanager.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
