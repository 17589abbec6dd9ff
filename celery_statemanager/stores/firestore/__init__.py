"""States in Firestore; the only place that imports its client."""

from celery_statemanager.stores.firestore.address import Address
from celery_statemanager.stores.firestore.store import FirestoreStore

__all__ = ["Address", "FirestoreStore"]
