"""For tests: the contract of stores, a clock to move by hand, a state machine to let loose on a store.

Needs pytest; the state machine needs hypothesis. Neither comes with this package.
"""

from __future__ import annotations

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from celery_statemanager.testing.clock import FakeClock  # noqa: E402
from celery_statemanager.testing.contract import StoreContract  # noqa: E402
from celery_statemanager.testing.kit import Grid, StoreFactory  # noqa: E402

__all__ = ["FakeClock", "Grid", "StoreContract", "StoreFactory"]
