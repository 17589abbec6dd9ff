"""The app of the integration tests, imported by workers and tests and configured by the environment."""

import os
import signal
import tempfile
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import bodies
import thrown
import windows
from celery import Celery, signals
from celery.backends.filesystem import FilesystemBackend
from celery.exceptions import Reject
from kombu import Queue

from celery_statemanager import StateError, StatefulTask, StateManager, Status, current_state
from examples import broker

HOME = Path(os.environ["TRACKED_HOME"])

app = Celery("tracked", broker=os.environ["TRACKED_BROKER"])
app.conf.update(
    statemanager_store_url=os.environ["TRACKED_STORE"],
    statemanager_progress_interval=0.0,
    broker_heartbeat=15,
    statemanager_lease=6.0,
    statemanager_store_timeout=float(os.environ.get("TRACKED_STORE_TIMEOUT", "3")),
    statemanager_sweep_interval=1.5,
    task_ignore_result=True,
    worker_pool_start_method=os.environ.get("TRACKED_START_METHOD", "fork"),
    worker_prefetch_multiplier=1,
    worker_lost_wait=1.0,
    worker_soft_shutdown_timeout=float(os.environ.get("TRACKED_SOFT_SHUTDOWN", "0")),
    broker_connection_retry_on_startup=True,
)
if os.environ["TRACKED_BROKER"].startswith("filesystem"):
    app.conf.update(broker.settings(HOME))
if "TRACKED_VISIBILITY" in os.environ:
    options = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    options["visibility_timeout"] = int(os.environ["TRACKED_VISIBILITY"])
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **options}
if "TRACKED_CANCELS" in os.environ:
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
if "TRACKED_TEMPORARY" in os.environ:
    tempfile._candidate_tempdir_list = lambda: [os.environ["TRACKED_TEMPORARY"]]
if "TRACKED_QUORUM" in os.environ:
    limits = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    app.conf.task_queues = [Queue(os.environ["TRACKED_QUORUM"], queue_arguments=limits)]
if "TRACKED_RESULTS" in os.environ:
    app.conf.update(result_backend=os.environ["TRACKED_RESULTS"], task_ignore_result=False)
app.conf.worker_deduplicate_successful_tasks = "TRACKED_DEDUPLICATE" in os.environ
states = StateManager(app)
if "TRACKED_FAULT" in os.environ:
    windows.install(os.environ["TRACKED_FAULT"], states, HOME)
task = partial(app.task, shared=False)


def note(name, text=""):
    """Append a line to the file of that name, which outlives the process."""
    with (HOME / name).open("a") as file:
        file.write(f"{text}\n")


def notes(name):
    path = HOME / name
    return path.read_text().splitlines() if path.exists() else []


class Trace:
    """The notes and files of the executions of one task."""

    def __init__(self, key):
        self.key = key
        self.is_first = len(notes(key)) == 1

    def wait(self):
        wait_for(f"{self.key}.go", 60)

    def touch(self, suffix):
        (HOME / f"{self.key}.{suffix}").touch()


class Acting(StatefulTask):
    abstract = True
    max_retries = 2
    default_retry_delay = 0
    tag = "work"

    def before_start(self, task_id, args, kwargs):
        super().before_start(task_id, args, kwargs)
        if args[0] == "not_start":
            raise OSError("not ready")

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        if args[0] == "retry_ahead":
            wait_for(f"{args[1]}.ahead", 30)


def act(self, body, key):
    """Call the function of that name in ``bodies``."""
    note(key, f"begun {self.state.attempt}")
    return getattr(bodies, body)(self, Trace(key))


def acting(name, **options):
    return task(act, name=name, base=Acting, bind=True, **options)


act_early = acting("act_early")
act_late = acting("act_late", acks_late=True)
act_again = acting("act_again", acks_late=True, acks_on_failure_or_timeout=False, reject_on_worker_lost=True)
act_retried = acting("act_retried", retry_on_worker_lost=True, default_retry_delay=1)
act_autoretried = acting("act_autoretried", autoretry_for=(Exception,))
act_stored = acting("act_stored", ignore_result=False, backend=FilesystemBackend(app=app, url=f"file://{HOME}"))


throw = task(thrown.throw, name="throw", base=thrown.Throwing, bind=True, tag="work")
throw_plain = task(thrown.throw, name="throw_plain", base=thrown.PlainThrowing, bind=True)


@task(base=StatefulTask, bind=True, tag="work")
def succeed(self, value=None):
    self.state.set(40, "half way", {"value": value})
    return value


@task(base=StatefulTask, tag="work")
def nap(seconds):
    time.sleep(seconds)


@task(base=StatefulTask, bind=True, tag="work")
def count(self, key):
    note(key, self.state.attempt)


@task(base=StatefulTask, bind=True, tag="work")
def advance(self, total):
    for done in range(1, total + 1):
        self.state.progress(done, total, f"step {done}")


@task(base=StatefulTask, tag="work")
def fail(text="broken"):
    raise ValueError(text)


@task(base=StatefulTask, tag="work", typing=False)
def one_argument(value):
    return value


@task(base=StatefulTask, tag="work")
def fail_with(code, message):
    raise StateError(code, message)


@task(base=StatefulTask, bind=True, tag="work")
def replaced(self, key):
    note(key, f"old {self.state.attempt}")
    return self.replace(replacement.s(key).set(queue=self.request.delivery_info["routing_key"]))


@task(base=StatefulTask, bind=True, tag="other")
def replacement(self, key):
    note(key, f"new {self.state.attempt} {self.state.tag}")
    return "replaced"


@task(base=StatefulTask, bind=True, tag="work")
def wait_for_all(self, status):
    self.state.set(status)
    return len(self.state.synchronize(status, timeout=20))


@task(tag="plain")
def plain(key):
    state = current_state()
    state.set(7, "from a plain function")
    note(key, state.task_index)


@task(tag="plain")
def fail_plain(text="broken"):
    raise ValueError(text)


@task(base=StatefulTask, tag="work")
def returns_object():
    return object()


@task(tag="plain", keep_result=True)
def now():
    return datetime.now(timezone.utc)


@task(base=StatefulTask, bind=True, tag="work", autoretry_for=(OSError,), default_retry_delay=0)
def return_retries(self):
    if not self.request.retries:
        raise OSError("not yet")
    return self.request.retries


@task(base=StatefulTask, bind=True, tag="second")
def second(self, _):
    self.state.set(60)


@task(base=StatefulTask, bind=True, tag="work", autoretry_for=(Exception,), max_retries=5, default_retry_delay=0)
def wait_for_cancel(self, key):
    note(key, "running")
    wait_for(f"{key}.go", 30)
    self.state.set(50)
    note(key, "not stopped")


@task(base=StatefulTask, bind=True, tag="work")
def gate(self, key):
    note(key, f"begun {self.state.attempt}")
    wait_for(f"{key}.go", 30)
    note(key, f"ended {self.state.attempt}")
    return {"attempt": self.state.attempt}


@task(base=StatefulTask, tag="work")
def fail_beside(key):
    """Fail as soon as another task has written its first note."""
    wait_for(key, 30)
    raise ValueError("broken")


@task(base=StatefulTask, bind=True, tag="work", max_retries=1)
def retry_after_go(self, key):
    note(key, f"begun {self.state.attempt}")
    if not self.request.retries:
        wait_for(f"{key}.go", 60)
        raise self.retry(countdown=0)


@task(base=StatefulTask, bind=True, tag="work", max_retries=1)
def retry_in(self, key, queue, countdown):
    """Retry in another queue."""
    note(key, f"begun {self.state.attempt}")
    if not self.request.retries:
        raise self.retry(countdown=countdown, queue=queue)


@task(base=StatefulTask, bind=True, tag="work")
def write_error(self, key):
    self.state.set(-50, "out of quota")


@task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def late_gate(self, key, padding=""):
    note(key, f"begun {self.state.attempt}")
    wait_for(f"{key}.go", 60)
    note(key, f"ended {self.state.attempt}")
    return {"attempt": self.state.attempt}


@task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def late_gate_with_cleanup(self, key):
    """Take some time to end after the worker has cancelled it."""
    note(key, f"begun {self.state.attempt}")
    try:
        wait_for(f"{key}.go", 60)
    finally:
        if self.state.attempt == 1:
            wait_for(f"{key}.clean", 60)
        note(key, f"ended {self.state.attempt}")


@task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def kill_worker(self, key):
    note(key, f"begun {self.state.attempt}")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@task(base=StatefulTask, bind=True, tag="work")
def compute(self, key):
    """Compute without a pause, so that no greenlet runs."""
    note(key, f"begun {self.state.attempt}")
    while not (HOME / f"{key}.go").exists():
        for _ in range(1_000_000):  # about 20 ms: with a system call every 5 ms, other threads hardly ever get the GIL
            pass


@task(tag="work")
def stop_main_loop(key):
    """Do not run: the main loop of the worker that receives it is blocked, see ``stand_still``."""


@signals.task_received.connect(weak=False)
def stand_still(request, **_):
    if request.name == stop_main_loop.name:
        wait_for(f"{request.args[0]}.loop", 60)


@task(base=StatefulTask, bind=True, tag="work", acks_late=True)
def requeue_until_attempt(self, key, last):
    note(key, f"begun {self.state.attempt}")
    if self.state.attempt < last:
        raise Reject("not ready", requeue=True)


@task(base=StatefulTask, bind=True, tag="work", acks_late=True, rate_limit="1/m")
def rate_limited(self, key):
    note(key, f"begun {self.state.attempt}")


@task(tag="work")
def plain_gate(key):
    note(key, "begun")
    wait_for(f"{key}.go", 30)
    note(key, "ended")


@task(base=StatefulTask, bind=True, tag="work")
def write_after_go(self, key):
    note(key, f"begun {self.state.attempt}")
    wait_for(f"{key}.go", 60)
    self.state.set(50, "written too late")
    note(key, "not stopped")


@task(base=StatefulTask, bind=True, tag="work")
def work_through(self, key):
    note(key, "begun")
    wait_for(f"{key}.go", 60)
    began = time.monotonic()
    for step in range(1, 21):
        self.state.progress(step, 20, f"step {step}")
    note(key, f"{time.monotonic() - began:.3f}")


@task(base=StatefulTask, bind=True)
def callback(self, *args):
    job = states.current_job()
    note(f"callback.{job.id}", f"{self.request.id.partition('.')[2]} {list(args)} {bool(self.state)}")


def note_the_job(key, *job_id):
    """Leave a trace of the job that a callback finds, and of the arguments that it gets."""
    job = states.current_job()
    note(key, f"{job.id} {job.run_token} {job.summary().finished} {list(job_id)}")


class Tenant(StatefulTask):
    """A task class that replaces all headers of a message."""

    abstract = True
    tag = "tenant"

    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, **{**options, "headers": {"tenant": "t"}})


@task(base=Tenant, bind=True, max_retries=1)
def retry_for_tenant(self, _=None):
    if not self.request.retries:
        raise self.retry(countdown=0)
    self.state.set(50, self.request.headers["tenant"])


@task(base=Tenant)
def callback_of_tenant(job_id):
    note(f"callback.{job_id}", states.current_job().id)


class Locked(StatefulTask):
    """A task class whose lock keeps a message from being sent while another one is under way."""

    abstract = True
    tag = "locked"

    def apply_async(self, args=None, kwargs=None, **options):
        if (HOME / f"{self.name}.lock").exists():
            return self.AsyncResult("of-another-task")
        return super().apply_async(args, kwargs, **options)


@task(base=Locked)
def locked(_=None): ...


@task(base=Locked, bind=True)
def lock_and_retry(self):
    (HOME / f"{self.name}.lock").touch()
    raise self.retry(countdown=0)


@task(base=StatefulTask)
def stateful_callback(*args):
    note_the_job(args[-1], *args[:-1])


@task()
def plain_callback(*args):
    note_the_job(args[-1], *args[:-1])


@task(base=StatefulTask, bind=True)
def failing_callback(self, job_id):
    note(f"callback.{job_id}", self.request.id.partition(".")[2])
    raise ValueError("callback broken")


@task(base=StatefulTask)
def collect(results, key, *args):
    note(key, f"collected {len(results)}")
    return [results, *args]


@task(base=StatefulTask)
def broken_body(results, key):
    note(key, f"broken {len(results)}")
    raise ValueError("body broken")


@task(base=StatefulTask, bind=True)
def replaced_body(self, results, key):
    return self.replace(collect.si(results, key, "replaced").set(queue=self.request.delivery_info["routing_key"]))


@task(base=StatefulTask, bind=True, max_retries=1, default_retry_delay=0)
def retried_body(self, results, key):
    note(key, "begun")
    if not self.request.retries:
        raise self.retry()
    return results


@task(base=StatefulTask)
def slow_body(results, key):
    note(key, "begun")
    wait_for(f"{key}.go", 60)


@task()
def errback_of_id(task_id, *, key):
    note(f"{key}.errbacks", f"old {task_id.partition('.')[2]}")


@task()
def errback(request, exc, traceback, key):
    note(f"{key}.errbacks", f"new {request.id.partition('.')[2]} {type(exc).__name__}")


@task(base=StatefulTask, acks_late=True, reject_on_worker_lost=True, tag="work")
def die_once(key, value):
    """Kill the child of a prefork worker, or return a value when the message is delivered again."""
    note(key, "died")
    if len(notes(key)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@task(base=StatefulTask, bind=True, max_retries=2, default_retry_delay=0, tag="work")
def retry_then_return(self, value, fails=0):
    if self.request.retries < 1 or fails:
        raise self.retry(exc=ValueError("broken"))
    return value


@task(base=StatefulTask, bind=True, tag="work")
def fail_first_attempt(self, key):
    note(key, self.state.attempt)
    if self.state.attempt == 1:
        raise ValueError("broken at first")


@task(base=StatefulTask, bind=True, tag="work")
def fail_until_fixed(self, key, *_):
    """Fail until the test has fixed it."""
    note(key, f"{self.state.attempt} {self.request.id.partition('.')[2]}")
    if not (HOME / f"{key}.fixed").exists():
        raise ValueError("broken")
    return self.state.attempt


@task(base=StatefulTask, bind=True, tag="second")
def fail_second_until_fixed(self, value, key):
    note(key, f"second {self.state.attempt} {len(value)}")
    if not (HOME / f"{key}.fixed").exists():
        raise ValueError("broken")


@task(base=StatefulTask, bind=True, tag="work")
def emit(self, key, size):
    note(key, f"first {self.state.attempt}")
    return "x" * size


@task(base=StatefulTask, bind=True, tag="work")
def finish_by_manager(self):
    self.state.manager.set_state("work", Status.FINISHED, "by hand")
    self.state.manager.set_state("extra", 5)


@task(base=StatefulTask, bind=True, tag="work")
def untracked_state(self, key):
    note(key, f"{bool(self.state)} {self.state.set(3)} {self.state.progress(1, 2)} {self.state.get()}")


def wait_for(name, seconds):
    """Block until the test has created a file, so that the test controls how long a task runs."""
    deadline = time.monotonic() + seconds
    while not (HOME / name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)
