"""The contract of stores as tests: what ``Store`` says, held against any store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_statemanager.stores.base import Store
from celery_statemanager.testing.clock import FakeClock
from celery_statemanager.testing.contract_aggregates import AggregateContract
from celery_statemanager.testing.contract_attempts import AttemptContract
from celery_statemanager.testing.contract_barrier import BarrierContract
from celery_statemanager.testing.contract_cancel import CancelContract
from celery_statemanager.testing.contract_cells import CellContract
from celery_statemanager.testing.contract_completion import CompletionContract
from celery_statemanager.testing.contract_deletion import DeletionContract
from celery_statemanager.testing.contract_jobs import JobContract
from celery_statemanager.testing.contract_late import LateBeginContract
from celery_statemanager.testing.contract_migrations import MigrationContract
from celery_statemanager.testing.contract_paging import PagingContract
from celery_statemanager.testing.contract_payloads import PayloadContract
from celery_statemanager.testing.contract_rules import RuleContract
from celery_statemanager.testing.contract_signals import SignalContract
from celery_statemanager.testing.contract_stages import StageContract
from celery_statemanager.testing.contract_subscriptions import SubscriptionContract
from celery_statemanager.testing.contract_watching import WatchContract
from celery_statemanager.testing.contract_workers import WorkerContract
from celery_statemanager.testing.kit import StoreFactory


class StoreContract(
    JobContract,
    DeletionContract,
    CellContract,
    PayloadContract,
    RuleContract,
    AttemptContract,
    LateBeginContract,
    StageContract,
    CancelContract,
    CompletionContract,
    AggregateContract,
    WorkerContract,
    PagingContract,
    WatchContract,
    SubscriptionContract,
    BarrierContract,
    SignalContract,
    MigrationContract,
):
    """Tests that every store passes, and no test that only one could.

    Subclass it where pytest collects tests and give it a fixture ``store_factory``::

        from celery_statemanager.testing import StoreContract, StoreFactory

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store_factory(self, tmp_path):
                url = f"mystore://{tmp_path}/states"
                return StoreFactory(lambda **options: open_store(url, **options), url, takes_clock=True)

    Each test takes an empty store. What only some stores have is a field of ``StoreFactory``, and tests of it are
    skipped where it is missing: data that other processes reach (``url``), a clock that can be given (``takes_clock``).
    """

    @pytest.fixture
    def store(self, store_factory: StoreFactory) -> Iterator[Store]:
        """Give an empty store."""
        with store_factory.make() as store:
            yield store

    @pytest.fixture
    def other_store(self, store: Store, store_factory: StoreFactory) -> Iterator[Store]:
        """Give a second store object on the data of ``store``."""
        if store_factory.url is None:
            pytest.skip("its data live and die with one store object")
        with store_factory.make() as other:
            yield other

    @pytest.fixture
    def clock(self, store_factory: StoreFactory) -> FakeClock:
        """Give the clock of ``clocked_store``."""
        if not store_factory.takes_clock:
            pytest.skip("its clock is the server's")
        return FakeClock()

    @pytest.fixture
    def clocked_store(self, store_factory: StoreFactory, clock: FakeClock) -> Iterator[Store]:
        """Give an empty store whose time stands still but for ``clock.advance``."""
        with store_factory.make(clock=clock) as store:
            yield store
