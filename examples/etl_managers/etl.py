"""One process of the job: ``JOB_COMPLETION_INDEX=0 python -m examples.etl_managers.etl``.

``STORE_URL`` is the store, ``JOB_NAME`` the name of the job, ``PROCESSES`` their number, ``ETL_DIR`` the folder of the
data. ``PAGE_SECONDS`` makes each page take that long.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from celery_statemanager import BeginRefused, JobExists, Manager, Status, Store, open_store

PAGES = 20
HOME = Path(os.environ.get("ETL_DIR", ".etl"))
STORE_URL = os.environ.get("STORE_URL", f"sqlite:///{HOME.resolve()}/states.db")
JOB = os.environ.get("JOB_NAME", "sales")
PROCESSES = int(os.environ.get("PROCESSES", "4"))
PAGE_SECONDS = float(os.environ.get("PAGE_SECONDS", "0.2"))


def main() -> None:
    """Do the work of the row with this process's index."""
    index = int(os.environ["JOB_COMPLETION_INDEX"])
    HOME.mkdir(parents=True, exist_ok=True)
    with open_store(STORE_URL) as store, opened(store, index) as manager:
        with contextlib.suppress(BeginRefused):  # an earlier run of this index has finished the stage
            load(manager, index)
        manager.synchronize("load", Status.FINISHED, timeout=600, fail_fast=False)  # a failed process is started again
        with contextlib.suppress(BeginRefused):
            report(manager, index)


def opened(store: Store, index: int) -> Manager:
    """Create the job, or open it if another process was faster."""
    with contextlib.suppress(JobExists):
        return Manager.create(store, JOB, num_tasks=PROCESSES, tags=("load", "report"), task_index=index)
    return Manager.open(store, JOB, task_index=index)


def load(manager: Manager, index: int) -> None:
    """Load the pages of this index. A process that was started again continues at the last page that was stored."""
    manager.begin("load")  # from now on, an earlier process of this index that still runs cannot write
    last = manager.get_state("load", index)
    total, first = (last.payload["total"], last.payload["page"] + 1) if last.payload else (0, 0)
    for page in range(first, PAGES):
        total += sum(sales(index, page))
        percent = max(2, 100 * (page + 1) // PAGES)
        manager.set_state("load", min(percent, 100), f"page {page}", {"page": page, "total": total, "first": first})
        time.sleep(PAGE_SECONDS)
    manager.set_state("load", Status.FINISHED, payload={"page": PAGES, "total": total, "first": first})


def report(manager: Manager, index: int) -> None:
    """Write the sum of all processes, in the first one."""
    manager.begin("report")
    if index == 0:
        totals = {state.task_index: state.payload["total"] for state in manager.list_states("load") if state.payload}
        (HOME / "report.json").write_text(json.dumps({"total": sum(totals.values()), "by_index": totals}))
    manager.set_state("report", Status.FINISHED)


def sales(index: int, page: int) -> Iterator[int]:
    """Yield the sales of one page. A real program reads them from a file or a database."""
    yield from range(100 * (PAGES * index + page), 100 * (PAGES * index + page + 1))


if __name__ == "__main__":
    main()
