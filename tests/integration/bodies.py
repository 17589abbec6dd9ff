"""What the bodies of tasks do in the matrix of outcomes: functions of the running task and its trace."""

import os
import signal
import sys
import time

from billiard.process import current_process
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_statemanager import StateError, Status

LIMITED, UNLIMITED = 20.0, 3.0
"""Seconds that are longer than a limit of one: in a child, which is cut short however late its main process looks; and
where limits may count for nothing."""


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


def succeed(task, trace):
    task.state.set(40, "half way")


def fail(task, trace):
    raise ValueError("broken")


def fail_unpicklable(task, trace):
    raise Unpicklable("broken", lambda: None)


def fail_with_a_code(task, trace):
    raise StateError(-42, "disk full")


def run_out_of_memory(task, trace):
    raise MemoryError("none left")


def give_an_object(task, trace):
    return object()


def say_negative(task, trace):
    task.state.set(-50, "my own word")


def say_negative_and_fail(task, trace):
    task.state.set(-50, "my own word")
    raise ValueError("broken")


def finish_and_fail(task, trace):
    task.state.set(Status.FINISHED)
    raise ValueError("broken")


def retry_twice(task, trace):
    if task.request.retries < 2:
        raise task.retry(exc=OSError("not yet"), countdown=0)


def retry_later(task, trace):
    if task.request.retries < 1:
        raise task.retry(countdown=1)


def retry_for_ever(task, trace):
    raise task.retry(countdown=0)


def retry_for_ever_with_a_cause(task, trace):
    raise task.retry(exc=OSError("never"), countdown=0)


def retry_ahead(task, trace):
    """Retry, and be run again before this execution has ended."""
    if trace.is_first:
        raise task.retry(countdown=0)
    trace.touch("ahead")


def ignore(task, trace):
    raise Ignore("not mine")


def reject(task, trace):
    raise Reject("unwanted", requeue=False)


def requeue_first(task, trace):
    if trace.is_first:
        raise Reject("try elsewhere", requeue=True)


def requeue(task, trace):
    raise Reject("try elsewhere", requeue=True)


def replace(task, trace):
    if trace.is_first:
        queue = (task.request.delivery_info or {}).get("routing_key")
        return task.replace(task.s("replace", trace.key).set(queue=queue))
    return None


def take_too_long(task, trace):
    """Longer than a limit of 1 s, the first time."""
    if trace.is_first:
        work_on()


def work_on():
    time.sleep(UNLIMITED if current_process().name == "MainProcess" else LIMITED)


def catch_the_limit(task, trace):
    try:
        work_on()
    except SoftTimeLimitExceeded:
        task.state.set(90, "cut short")


def exit_first(task, trace):
    if trace.is_first:
        sys.exit(3)


def exit_at_once_first(task, trace):
    if trace.is_first:
        os._exit(0)


def be_killed_first(task, trace):
    if trace.is_first:
        os.kill(os.getpid(), signal.SIGKILL)


def wait(task, trace):
    trace.wait()


def wait_first(task, trace):
    if trace.is_first:
        trace.wait()
