"""Bodies of the tasks in the matrix of outcomes: functions of the running task and its trace."""

import asyncio
import os
import signal
import sys
import time

from billiard.process import current_process
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_statemanager import StateError, Status

LIMITED, UNLIMITED = 20.0, 3.0
"""Seconds that exceed a time limit of 1 s: in a child, which its main process interrupts, possibly late; and in a main
process, where a limit may have no effect."""


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


def succeed(task, trace):
    task.state.set(40, "half way")


def fail(task, trace):
    raise ValueError("broken")


def fail_unpicklable(task, trace):
    raise Unpicklable("broken", lambda: None)


def fail_with_a_code(task, trace):
    raise StateError(-42, "disk full")


def raise_memory_error(task, trace):
    raise MemoryError("none left")


def return_an_object(task, trace):
    return object()


def write_negative(task, trace):
    task.state.set(-50, "out of quota")


def write_negative_and_fail(task, trace):
    task.state.set(-50, "out of quota")
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


def retry_forever(task, trace):
    raise task.retry(countdown=0)


def retry_forever_with_a_cause(task, trace):
    raise task.retry(exc=OSError("never"), countdown=0)


def retry_ahead(task, trace):
    """Retry; the retry runs before this execution has ended."""
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
    """Exceed a limit of 1 s in the first execution."""
    if trace.is_first:
        exceed_the_time_limit()


def exceed_the_time_limit():
    time.sleep(UNLIMITED if current_process().name == "MainProcess" else LIMITED)


def catch_the_time_limit(task, trace):
    try:
        exceed_the_time_limit()
    except SoftTimeLimitExceeded:
        task.state.set(90, "cut short")


def exit_first(task, trace):
    if trace.is_first:
        sys.exit(3)


def interrupt(task, trace):
    raise KeyboardInterrupt


def cancel(task, trace):
    raise asyncio.CancelledError("away")


class Abandoned(BaseException):
    """Neither an error nor an exit, such as ``trio.Cancelled``."""


def abandon(task, trace):
    raise Abandoned("half way")


def leave_the_greenlet(task, trace):
    from gevent import GreenletExit

    raise GreenletExit("on its own")


def time_out_itself(task, trace):
    import gevent

    with gevent.Timeout(0.01):
        gevent.sleep(10)


def exit_at_once_first(task, trace):
    if trace.is_first:
        os._exit(0)


def kill_itself_first(task, trace):
    if trace.is_first:
        os.kill(os.getpid(), signal.SIGKILL)


def wait(task, trace):
    trace.wait()


def wait_first(task, trace):
    if trace.is_first:
        trace.wait()
