"""The connections on which scripts are sent: used again, never after a failure, never across a fork."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import redis

from celery_statemanager.stores.redis.connections import MOST_IDLE, Connections

OURS = "connections-under-test"
BLOCKED = "b"
"""The flag of a client that waits in a blocking command."""


class InterruptedByTestError(Exception):
    pass


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def connections(redis_server):
    with redis_server.client(client_name=OURS) as client:
        made = Connections(client.connection_pool)
        yield made
        made.close()


def kept(client, flag=""):
    """Count the connections under test that the server knows: other tests share it."""
    return sum(each["name"] == OURS and flag in each["flags"] for each in client.client_list())


def packed(*command):
    return b"".join(redis.Connection().pack_command(*command))


def ask(connections, *command):
    return connections.ask(packed(*command))


def ours(connections):
    """Give the server's number of the connection that the next call will take."""
    return ask(connections, "CLIENT", "ID")


def test_one_after_the_other_use_one_connection_also_after_a_refusal(connections):
    number = ours(connections)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        ask(connections, "NONSENSE")
    assert ours(connections) == number


def test_one_that_the_server_has_closed_is_noticed_before_sending(connections, client):
    number = ours(connections)
    client.execute_command("CLIENT", "KILL", "ID", number)
    assert ask(connections, "ECHO", "x") == b"x"
    assert ours(connections) != number


def test_an_interrupted_calls_reply_is_nobody_elses(connections, client):
    number = ours(connections)

    def interrupt(*_):
        if not kept(client, BLOCKED):  # too early, on a busy machine
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        client.lpush("late", "reply")
        raise InterruptedByTestError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedByTestError):
            ask(connections, "BLPOP", "late", 10)
    finally:
        signal.signal(signal.SIGALRM, before)
        client.delete("late")
    assert ask(connections, "ECHO", "x") == b"x"
    assert ours(connections) != number


def test_what_follows_is_under_way_before_a_reply_is_handed_on(connections, client):
    client.delete("asked")
    number = ours(connections)
    asked = connections.ask_ahead(packed("INCR", "asked"), lambda n: packed("INCR", "asked") if n < 3 else None)
    pause = threading.Event()
    for reply in (1, 2):
        assert next(asked) == reply
        while client.get("asked") != str(reply + 1).encode():
            pause.wait(0.01)
    assert list(asked) == [3]
    assert ours(connections) == number


def test_replies_that_nobody_waits_for_are_nobody_elses(connections):
    number = ours(connections)
    asked = connections.ask_ahead(packed("ECHO", "y"), lambda _: packed("ECHO", "y"))
    assert next(asked) == b"y"
    asked.close()
    assert ask(connections, "ECHO", "x") == b"x"
    assert ours(connections) != number


def test_a_child_takes_none_of_its_parents(connections):
    number = ours(connections)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, str(ours(connections)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != number
    assert ours(connections) == number


def test_no_more_are_kept_than_are_of_use(connections, client):
    callers = MOST_IDLE + 8
    threads = [threading.Thread(target=ask, args=(connections, "BLPOP", f"go {n}", 20)) for n in range(callers)]
    for thread in threads:
        thread.start()
    pause = threading.Event()
    while kept(client, BLOCKED) < callers:
        pause.wait(0.01)
    for number in range(callers):
        client.rpush(f"go {number}", "x")
    for thread in threads:
        thread.join()
    while kept(client) > MOST_IDLE:
        pause.wait(0.01)
    assert kept(client) == MOST_IDLE


def test_closed_means_that_none_is_kept(connections, client):
    ours(connections)
    assert kept(client) == 1
    connections.close()
    pause = threading.Event()
    while kept(client):
        pause.wait(0.01)
    ask(connections, "ECHO", "x")
    while kept(client):
        pause.wait(0.01)
