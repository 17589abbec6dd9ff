"""The contract of stores as tests, a class for each capability."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.testing.contract_aggregates import AggregateContract
from celery_statemanager.testing.contract_attempts import AttemptContract
from celery_statemanager.testing.contract_barrier import BarrierContract
from celery_statemanager.testing.contract_cancel import CancelContract
from celery_statemanager.testing.contract_cells import CellContract
from celery_statemanager.testing.contract_completion import CompletionContract
from celery_statemanager.testing.contract_deletion import DeletionContract
from celery_statemanager.testing.contract_fixtures import ContractFixtures
from celery_statemanager.testing.contract_jobs import JobContract
from celery_statemanager.testing.contract_late import LateBeginContract
from celery_statemanager.testing.contract_migrations import MigratableContract
from celery_statemanager.testing.contract_paging import PagingContract
from celery_statemanager.testing.contract_payloads import PayloadContract
from celery_statemanager.testing.contract_rules import RuleContract
from celery_statemanager.testing.contract_signals import SignalContract
from celery_statemanager.testing.contract_stages import StageContract
from celery_statemanager.testing.contract_subscriptions import SubscriptionContract
from celery_statemanager.testing.contract_watching import WatchContract
from celery_statemanager.testing.contract_workers import WorkerRegistryContract
from celery_statemanager.testing.kit import Grid


class CoreContract(
    ContractFixtures,
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
    WatchContract,
    SubscriptionContract,
    BarrierContract,
    SignalContract,
):
    """What every ``Store`` passes.

    Subclass it where pytest collects tests and define a fixture ``store_factory``::

        from celery_statemanager.testing import CoreContract, StoreFactory

        class TestMyStore(CoreContract):
            @pytest.fixture
            def store_factory(self, tmp_path):
                return StoreFactory(lambda **options: MyStore(tmp_path, **options), url=str(tmp_path), takes_clock=True)

    Add ``WorkerRegistryContract`` and ``MigratableContract`` as further bases for a store with these capabilities, or
    use ``StoreContract`` for one with all of them. Each test takes an empty store. What only some stores have is a
    field of ``StoreFactory``, and tests of it are skipped where it is missing: data that a second store object reaches
    (``url``), a clock that the test controls (``takes_clock``).
    """


class StoreContract(CoreContract, WorkerRegistryContract, PagingContract, MigratableContract):
    """What every ``FullStore`` passes: the parts for all capabilities. Use it as ``CoreContract``."""

    def test_an_open_attempt_is_listed_as_its_cell_was_rewritten(self, store: FullStore) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w")
        (found,) = store.outdated_cells(grid.ref, later := grid.job.schema_version + 1)
        store.rewrite_cells(grid.ref, [replace(found, cell=replace(found.cell, schema_version=later))])
        (attempt,) = store.list_open_attempts()
        assert (attempt.cell, attempt.cell.schema_version) == (grid.cell("a", 0), later)
