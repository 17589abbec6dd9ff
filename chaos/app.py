"""The Celery app of the chaos rounds, configured by environment variables."""

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


def note(job_id, text):
    """Append a line that survives the process: the time and a text."""
    with (HOME / f"notes.{job_id}").open("a") as file:
        file.write(f"{time.time():.6f} {text}\n")


def notes(job_id):
    """Return the notes of a job as lists of words."""
    path = HOME / f"notes.{job_id}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def work(task, seconds):
    """Run for ``seconds`` in five steps and report progress after each."""
    state = task.state
    note(state.job_id, f"begun {state.task_index} {state.attempt}")
    for step in range(1, 6):
        time.sleep(seconds / 5)
        state.progress(step, 5)
    note(state.job_id, f"ended {state.task_index} {state.attempt}")


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def requeued(self, seconds):
    """Run to the end. The task is acknowledged late, so it is requeued if its worker is lost."""
    work(self, seconds)
    return "value"


@app.task(base=StatefulTask, bind=True, tag="work")
def marked(self, seconds):
    """Run to the end. The task is acknowledged early, so it ends LOST if its worker is lost."""
    work(self, seconds)
    return "value"


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True, max_retries=3, default_retry_delay=0)
def retried(self, seconds):
    """Request a retry in the first run and finish in the second."""
    if self.request.retries == 0:
        raise self.retry(exc=OSError("not yet"))
    work(self, seconds)
    return "value"


@app.task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def failing(self, seconds):
    """Run to the end and fail."""
    work(self, seconds)
    raise ValueError("as planned")


@app.task(base=StatefulTask, bind=True, tag="second", acks_late=True)
def second(self, value):
    """Run after ``requeued`` in a chain, and take its value."""
    note(self.state.job_id, f"second {self.state.task_index} {self.state.attempt} {value}")
    return value


@app.task(base=StatefulTask, bind=True, acks_late=True)
def callback(self, job_id):
    """Note when a callback begins and ends."""
    latch = self.request.id.partition(".")[2]
    note(job_id, f"callback-begun {latch} {self.state.attempt}")
    time.sleep(0.2)
    note(job_id, f"callback-ended {latch} {self.state.attempt}")
