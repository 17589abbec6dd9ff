"""The fixtures of every part of the store contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FakeClock, StoreFactory


class ContractFixtures:
    """Fixtures that depend on the fixture ``store_factory`` of a subclass."""

    @pytest.fixture
    def store(self, store_factory: StoreFactory) -> Iterator[Store]:
        """Yield an empty store."""
        with store_factory.make() as store:
            yield store

    @pytest.fixture
    def other_store(self, store: Store, store_factory: StoreFactory) -> Iterator[Store]:
        """Yield a second store object on the data of ``store``."""
        if store_factory.url is None:
            pytest.skip("the data belong to one store object")
        with store_factory.make() as other:
            yield other

    @pytest.fixture
    def clock(self, store_factory: StoreFactory) -> FakeClock:
        """Return the clock of ``clocked_store``."""
        if not store_factory.takes_clock:
            pytest.skip("the store does not accept a clock")
        return FakeClock()

    @pytest.fixture
    def clocked_store(self, store_factory: StoreFactory, clock: FakeClock) -> Iterator[Store]:
        """Yield an empty store whose time changes only by ``clock.advance``."""
        with store_factory.make(clock=clock) as store:
            yield store
