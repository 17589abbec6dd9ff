"""The Firestore store. Only this package imports the Firestore client."""

from celery_statemanager.stores.firestore.address import FirestoreAddress
from celery_statemanager.stores.firestore.store import FirestoreStore

__all__ = ["FirestoreAddress", "FirestoreStore"]
