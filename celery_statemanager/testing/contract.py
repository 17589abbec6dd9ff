"""The store contract as tests, one class per capability."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.testing.contract_aggregates import AggregateContract
from celery_statemanager.testing.contract_attempts import AttemptContract
from celery_statemanager.testing.contract_barrier import BarrierContract
from celery_statemanager.testing.contract_body import BodyContract
from celery_statemanager.testing.contract_cancel import CancelContract
from celery_statemanager.testing.contract_cells import CellContract
from celery_statemanager.testing.contract_completion import CompletionContract
from celery_statemanager.testing.contract_cursors import CursorContract
from celery_statemanager.testing.contract_deadlines import DeadlineContract, DeadlineRerunContract
from celery_statemanager.testing.contract_deletion import DeletionContract
from celery_statemanager.testing.contract_ends import LateEndContract
from celery_statemanager.testing.contract_fixtures import ContractFixtures
from celery_statemanager.testing.contract_jobs import JobContract
from celery_statemanager.testing.contract_late import LateBeginContract
from celery_statemanager.testing.contract_migrations import MigratableContract
from celery_statemanager.testing.contract_newest import NewestJobsContract
from celery_statemanager.testing.contract_outbox import ClaimContract
from celery_statemanager.testing.contract_payloads import PayloadContract
from celery_statemanager.testing.contract_policies import PolicyContract, PolicyRerunContract
from celery_statemanager.testing.contract_rerun import RerunContract
from celery_statemanager.testing.contract_returned import ReturnedContract
from celery_statemanager.testing.contract_rules import RuleContract
from celery_statemanager.testing.contract_signals import SignalContract
from celery_statemanager.testing.contract_stages import StageContract
from celery_statemanager.testing.contract_stalls import StallContract
from celery_statemanager.testing.contract_subscriptions import SubscriptionContract
from celery_statemanager.testing.contract_summaries import SummaryContract
from celery_statemanager.testing.contract_values import ValueContract
from celery_statemanager.testing.contract_watching import WatchContract
from celery_statemanager.testing.contract_workers import WorkerRegistryContract
from celery_statemanager.testing.kit import Grid


class CoreContract(
    ContractFixtures,
    JobContract,
    NewestJobsContract,
    DeletionContract,
    CellContract,
    PayloadContract,
    RuleContract,
    AttemptContract,
    LateBeginContract,
    LateEndContract,
    StageContract,
    CancelContract,
    CompletionContract,
    PolicyContract,
    DeadlineContract,
    AggregateContract,
    SummaryContract,
    StallContract,
    WatchContract,
    SubscriptionContract,
    CursorContract,
    BarrierContract,
    SignalContract,
):
    """The tests that every ``Store`` must pass.

    Subclass it where pytest collects tests and define a fixture ``store_factory``::

        from celery_statemanager.testing import CoreContract, StoreFactory

        class TestMyStore(CoreContract):
            @pytest.fixture
            def store_factory(self, tmp_path):
                return StoreFactory(lambda **options: MyStore(tmp_path, **options), url=str(tmp_path), takes_clock=True)

    Add ``WorkerRegistryContract``, ``OutboxContract`` and ``MigratableContract`` as further bases for a store with
    these capabilities, or use ``StoreContract`` for a store with all of them. Each test uses an empty store.

    Some tests need data that a second store object can open (``StoreFactory.url``), or a clock that the test controls
    (``StoreFactory.takes_clock``). They are skipped for other stores.
    """


class OutboxContract(
    ClaimContract,
    ReturnedContract,
    ValueContract,
    RerunContract,
    PolicyRerunContract,
    DeadlineRerunContract,
    BodyContract,
):
    """The tests that every ``Outbox`` must pass in addition to those of a ``WorkerRegistry``."""


class StoreContract(CoreContract, WorkerRegistryContract, OutboxContract, MigratableContract):
    """The tests that every ``FullStore`` must pass: those of all capabilities. Use it as ``CoreContract``."""

    def test_an_open_attempt_is_listed_with_its_rewritten_cell(self, store: FullStore) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w")
        (found,) = store.outdated_cells(grid.ref, later := grid.job.schema_version + 1)
        store.rewrite_cells(grid.ref, [replace(found, cell=replace(found.cell, schema_version=later))])
        (attempt,) = store.list_open_attempts()
        assert (attempt.cell, attempt.cell.schema_version) == (grid.cell("a", 0), later)
