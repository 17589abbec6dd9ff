"""The app whose workers get into trouble; configured by the environment."""

import os
import time
from pathlib import Path

from celery import Celery

from celery_statemanager import StatefulTask, StateManager
from examples import broker

HOME = Path(os.environ["CHAOS_HOME"])

app = Celery("chaos", broker=os.environ["CHAOS_BROKER"])
app.conf.update(
    statemanager_store_url=os.environ["CHAOS_STORE"],
    statemanager_lease=3.0,
    statemanager_sweep_interval=0.7,
    statemanager_store_timeout=float(os.environ["CHAOS_TIMEOUT"]),
    statemanager_progress_interval=0.0,
    task_ignore_result=True,
    task_default_queue="chaos",
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
)
if os.environ["CHAOS_BROKER"].startswith("filesystem"):
    app.conf.update(broker.settings(HOME))
states = StateManager(app)


def note(job_id, what):
    """Leave a line that survives the process: when, and what."""
    with (HOME / f"notes.{job_id}").open("a") as file:
        file.write(f"{time.time():.6f} {what}\n")


def notes(job_id):
    """Give the lines left for a job, split."""
    path = HOME / f"notes.{job_id}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def toil(task, seconds):
    """Work in five steps, telling of each."""
    state = task.state
    note(state.job_id, f"begun {state.task_index} {state.attempt}")
    for step in range(1, 6):
        time.sleep(seconds / 5)
        state.progress(step, 5)
    note(state.job_id, f"ended {state.task_index} {state.attempt}")


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def sturdy(self, seconds):
    """May run twice, and so is sent again when its worker is gone."""
    toil(self, seconds)


@app.task(base=StatefulTask, bind=True, tag="work")
def fragile(self, seconds):
    """May not run twice, and so is LOST with its worker."""
    toil(self, seconds)


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True, max_retries=3, default_retry_delay=0)
def fickle(self, seconds):
    """Fails once, then works."""
    if self.request.retries == 0:
        raise self.retry(exc=OSError("not yet"))
    toil(self, seconds)


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def doomed(self, seconds):
    """Fails."""
    toil(self, seconds)
    raise ValueError("as planned")


@app.task(base=StatefulTask, bind=True, acks_late=True)
def finish(self, job_id):
    """What is called once all are done."""
    latch = self.request.id.partition(".")[2]
    note(job_id, f"callback-begun {latch}")
    time.sleep(0.2)
    note(job_id, f"callback-ended {latch}")
