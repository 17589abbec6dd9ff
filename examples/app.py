"""The app of the examples. By default the broker is a folder and the store is a file.

The environment variables ``BROKER_URL`` and ``STATEMANAGER_STORE_URL`` select others. ``EXAMPLES_DIR`` is the folder of
the default broker and store. ``EXAMPLES_LEASE`` is the lease of workers in seconds.
"""

import os
from pathlib import Path

from celery import Celery

from celery_statemanager import StateManager
from examples import broker

HOME = Path(os.environ.get("EXAMPLES_DIR", ".demo")).resolve()
HOME.mkdir(parents=True, exist_ok=True)
LEASE = float(os.environ.get("EXAMPLES_LEASE", "30"))

app = Celery("examples", broker=os.environ.get("BROKER_URL"))
app.conf.update(
    statemanager_store_url=os.environ.get("STATEMANAGER_STORE_URL", f"sqlite:///{HOME / 'states.db'}"),
    statemanager_lease=LEASE,
    statemanager_sweep_interval=LEASE / 2,
    statemanager_progress_interval=0.2,
    statemanager_gc_schedule=3600.0,  # beat collects garbage every hour
    statemanager_gc_tombstone_age="7d",
    statemanager_gc_delete_age="30d",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
if "BROKER_URL" not in os.environ:
    app.conf.update(broker.settings(HOME))

states = StateManager(app)
