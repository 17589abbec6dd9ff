"""Children that are forked while a thread of the main process uses the broker."""

import subprocess
import sys

import pytest
from servers import running_redis

SCRIPT = """
import os, signal, sys, threading
from celery import Celery
from kombu.transport.redis import Channel
from celery_statemanager.integration.forks import renew_locks_in_children

app = Celery("forks", broker=sys.argv[1])
if sys.argv[2] == "prepared":
    renew_locks_in_children()
held, released = threading.Event(), threading.Event()

def create_channel():
    with vars(Channel)["client"].lock:  # as while the property is computed
        held.set()
        released.wait()

threading.Thread(target=create_channel, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(int(sys.argv[3]))
    with app.connection_for_write() as connection:
        connection.channel().close()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


@pytest.mark.parametrize(("prepared", "seconds"), [("prepared", 60), ("unprepared", 2)])
def test_a_child_opens_a_channel_although_a_thread_of_its_parent_was_doing_so(prepared, seconds):
    """Without the preparation it waits for ever. As soon as it does not, the preparation can be removed."""
    with running_redis() as server:
        command = [sys.executable, "-c", SCRIPT, server.url, prepared, str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == (prepared == "unprepared"), done.stderr
