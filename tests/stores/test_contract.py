"""The store contract, run on every store of this package."""

from __future__ import annotations

from celery_statemanager.testing import StoreContract


class TestStore(StoreContract):
    """Run once for each store in ``conftest.FACTORIES``."""
