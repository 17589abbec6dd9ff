"""The stores of the guide "Write a store of your own" pass the contracts of their capabilities."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from sweep_actions import RecordedActions

from celery_statemanager import ConfigurationError, Manager, Status, open_store
from celery_statemanager.leases import Report, renew
from celery_statemanager.records import ClaimRequest
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import (
    CoreContract,
    FakeClock,
    Grid,
    MigratableContract,
    OutboxContract,
    StoreContract,
    StoreFactory,
    WorkerRegistryContract,
)
from examples.folder_store import FolderStore, FullFolderStore, SweptFolderStore

ROOT = Path(__file__).parents[2]


class FolderTests:
    """The fixture of the classes below."""

    store_class: type[FolderStore]

    @pytest.fixture
    def store_factory(self, tmp_path: Path) -> StoreFactory:
        return StoreFactory(lambda **options: self.store_class(tmp_path, **options), str(tmp_path), takes_clock=True)


class TestJobs(FolderTests, CoreContract):
    store_class = FolderStore


class TestWorkers(FolderTests, WorkerRegistryContract, OutboxContract):
    store_class = SweptFolderStore


class TestMigrations(FolderTests, MigratableContract):
    store_class = FullFolderStore


@pytest.mark.full
class TestAll(FolderTests, StoreContract):
    store_class = FullFolderStore


def test_a_store_with_worker_records_and_messages_can_be_swept(tmp_path):
    clock = FakeClock()
    store = SweptFolderStore(tmp_path, clock=clock)
    grid = Grid.submitted(store, 5, published=1)
    grid.begin("a", 0, owner="w1")
    renew(store, "dead", Report(processes=[1]), 30.0)
    store.claim(grid.ref, ClaimRequest(publisher="dead/1.1", limit=1))
    clock.advance(60)
    report = Sweep(store, RecordedActions(store), lease=30.0, max_lost=3).run()
    assert (report.marked, report.published) == (1, 4)
    assert grid.state("a", 0).status == Status.LOST


def plugin(monkeypatch: pytest.MonkeyPatch, store_class: type[FolderStore]) -> None:
    """Register a store under the scheme ``folder``, as an installed package does."""
    point = metadata.EntryPoint("folder", f"examples.folder_store:{store_class.__name__}", "celery_statemanager.stores")
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [point] if group == point.group else [])


def test_open_store_opens_a_full_store_by_its_url(tmp_path, monkeypatch):
    plugin(monkeypatch, FullFolderStore)
    with open_store(f"folder://{tmp_path}/states") as store:
        Manager.create(store, "job", num_tasks=2, task_index=0).set_state("a", 5)
    with open_store(f"folder://{tmp_path}/states", timeout=1) as again:
        assert Manager.open(again, "job").get_state("a", 0).status == 5


@pytest.mark.parametrize(
    ("store_class", "lacking"),
    [(FolderStore, "WorkerRegistry and Outbox and Migratable"), (SweptFolderStore, "Migratable")],
)
def test_open_store_refuses_a_store_that_lacks_a_capability(store_class, lacking, tmp_path, monkeypatch):
    plugin(monkeypatch, store_class)
    reason = rf"{store_class.__name__} is not a FullStore \(it lacks {lacking}\), .* pass it to Manager"
    with pytest.raises(ConfigurationError, match=reason):
        open_store(f"folder://{tmp_path}")


def test_the_excerpts_of_the_guide_are_code_of_the_example():
    example = (ROOT / "examples" / "folder_store.py").read_text()
    guide = (ROOT / "docs" / "writing-a-store.md").read_text()
    excerpts = re.findall(r"```py\n(.*?)```", guide, re.DOTALL)
    assert len(excerpts) > 4
    for block in excerpts:
        for part in re.split(r"\n *\.\.\.\n", f"\n{block}"):
            assert part.strip("\n") in example
    assert len(example.splitlines()) < 400
