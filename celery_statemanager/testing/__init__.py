"""For tests: the contract of stores, a clock to move by hand, a state machine to let loose on a store, faults.

Needs pytest; the state machine needs hypothesis, ``testing.processes`` psutil. None comes with this package.

Faults: ``FaultyStore`` (lost responses, dropped notifications, a store that is away) and ``Proxy`` (connections cut)
are here; ``testing.processes`` kills and pauses workers, ``testing.celery`` delivers messages twice.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from celery_statemanager.stores.wrapped import WrappedStore  # noqa: E402
from celery_statemanager.testing.clock import FakeClock  # noqa: E402
from celery_statemanager.testing.contract import CoreContract, StoreContract  # noqa: E402
from celery_statemanager.testing.contract_migrations import MigratableContract  # noqa: E402
from celery_statemanager.testing.contract_workers import WorkerRegistryContract  # noqa: E402
from celery_statemanager.testing.faults import FaultyStore  # noqa: E402
from celery_statemanager.testing.kit import Grid, StoreFactory  # noqa: E402
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
    "Proxy",
    "StoreContract",
    "StoreFactory",
    "WorkerRegistryContract",
    "WrappedStore",
    "store_machine",
]


def store_machine(make_store: Callable[[], FullStore], recount_every: int = 1) -> type[StoreMachine]:
    """Give a hypothesis state machine for a store; run it by ``run_state_machine_as_test``.

    Args:
        make_store: called once an example; may open the same data again, for every example leaves it empty.
        recount_every: steps after which all that can be read of the jobs is compared: some hundred calls. What a
            step itself answers is compared always.

    Raises: ImportError – hypothesis is not installed.
    """
    try:
        import hypothesis  # noqa: F401
    except ImportError as error:
        raise ImportError(f"store_machine needs hypothesis ({error}): pip install hypothesis") from error
    from celery_statemanager.testing.machine import machine_for

    return machine_for(make_store, recount_every)
