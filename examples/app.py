"""The app of the examples: a broker made of folders and a store made of one file, unless the environment says else.

``BROKER_URL`` and ``STATEMANAGER_STORE_URL`` choose others; ``EXAMPLES_DIR`` is where the embedded ones live.
"""

import os
from pathlib import Path

from celery import Celery

from celery_statemanager import StateManager

HOME = Path(os.environ.get("EXAMPLES_DIR", ".demo")).resolve()
BROKER_URL = os.environ.get("BROKER_URL", "filesystem://")

app = Celery("examples", broker=BROKER_URL)
app.conf.update(
    statemanager_store_url=os.environ.get("STATEMANAGER_STORE_URL", f"sqlite:///{HOME / 'states.db'}"),
    statemanager_progress_interval=0.2,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)

if BROKER_URL.startswith("filesystem://"):
    queue, control = HOME / "queue", HOME / "control"
    app.conf.broker_transport_options = {
        "data_folder_in": str(queue),
        "data_folder_out": str(queue),
        "control_folder": str(control),
        "polling_interval": 0.02,
    }
    for folder in (queue, control):
        folder.mkdir(parents=True, exist_ok=True)
HOME.mkdir(parents=True, exist_ok=True)

states = StateManager(app)
