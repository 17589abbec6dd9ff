"""Tools for tests: the store contract, a clock under control, a state machine for stores, fault injectors.

Requires pytest. The state machine also requires hypothesis, and ``testing.processes`` requires psutil. This package
installs none of them.

Fault injectors: ``FaultyStore`` loses responses, drops notifications and simulates outages. ``Proxy`` cuts connections.
``testing.processes`` kills and pauses workers. ``testing.celery`` delivers messages twice.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from celery_statemanager.stores.wrapped import WrappedStore  # noqa: E402
from celery_statemanager.testing.contract import CoreContract, OutboxContract, StoreContract  # noqa: E402
from celery_statemanager.testing.contract_migrations import MigratableContract  # noqa: E402
from celery_statemanager.testing.contract_workers import WorkerRegistryContract  # noqa: E402
from celery_statemanager.testing.faults import FaultyStore  # noqa: E402
from celery_statemanager.testing.kit import FakeClock, Grid, StoreFactory  # noqa: E402, FakeClock
from celery_statemanager.testing.proxy import Proxy  # noqa: E402

if TYPE_CHECKING:
    from celery_statemanager.stores.capabilities import FullStore
    from celery_statemanager.testing.machine import StoreMachine

__all__ = [
    "CoreContract",
    "FakeClock",
    "FaultyStore",
    "Grid",
    "MigratableContract",
    "OutboxContract",
    "Proxy",
    "StoreContract",
    "StoreFactory",
    "WorkerRegistryContract",
    "WrappedStore",
    "store_machine",
]


def store_machine(make_store: Callable[[], FullStore], recount_every: int = 1) -> type[StoreMachine]:
    """Create a hypothesis state machine for a store. Run it with ``run_state_machine_as_test``.

    Args:
        make_store: called once per example. It may return stores on the same data, because each example leaves the
            store empty.
        recount_every: steps after which everything that can be read of the changed jobs is compared, which takes some
            hundred calls. The reply of every step is always compared.

    Raises: ImportError – hypothesis is not installed.
    """
    try:
        import hypothesis  # noqa: F401
    except ImportError as error:
        raise ImportError(f"store_machine needs hypothesis ({error}): pip install hypothesis") from error
    from celery_statemanager.testing.machine import StoreMachine

    fields = {"make_store": staticmethod(make_store), "recount_every": recount_every, "counts": Counter()}
    return type("StoreMachine", (StoreMachine,), fields)
