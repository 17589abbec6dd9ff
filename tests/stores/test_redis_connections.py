"""The connections that send scripts are reused, but never after a failure or across a fork."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import redis

from celery_statemanager.stores.redis.connections import MAX_IDLE, Connections

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


def open_connections(client, flag=""):
    """Return how many connections under test the server lists; other tests share it."""
    return sum(each["name"] == OURS and flag in each["flags"] for each in client.client_list())


def packed(*command):
    return b"".join(redis.Connection().pack_command(*command))


def ask(connections, *command):
    return connections.ask(packed(*command))


def connection_id(connections):
    """Return the server's id of the connection that the next call uses."""
    return ask(connections, "CLIENT", "ID")


def test_consecutive_calls_reuse_a_connection_even_after_an_error_reply(connections):
    number = connection_id(connections)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        ask(connections, "NONSENSE")
    assert connection_id(connections) == number


def test_a_connection_closed_by_the_server_is_replaced_before_sending(connections, client):
    number = connection_id(connections)
    client.execute_command("CLIENT", "KILL", "ID", number)
    assert ask(connections, "ECHO", "x") == b"x"
    assert connection_id(connections) != number


def test_the_reply_of_an_interrupted_call_is_discarded(connections, client):
    number = connection_id(connections)

    def interrupt(*_):
        if not open_connections(client, BLOCKED):  # the command is not blocked yet
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
    assert connection_id(connections) != number


def test_the_next_request_is_sent_before_a_reply_is_returned(connections, client):
    client.delete("replies")
    number = connection_id(connections)
    replies = connections.ask_ahead(packed("INCR", "replies"), lambda n: packed("INCR", "replies") if n < 3 else None)
    pause = threading.Event()
    for reply in (1, 2):
        assert next(replies) == reply
        while client.get("replies") != str(reply + 1).encode():
            pause.wait(0.01)
    assert list(replies) == [3]
    assert connection_id(connections) == number


def test_replies_of_an_abandoned_iteration_are_discarded(connections):
    number = connection_id(connections)
    replies = connections.ask_ahead(packed("ECHO", "y"), lambda _: packed("ECHO", "y"))
    assert next(replies) == b"y"
    replies.close()
    assert ask(connections, "ECHO", "x") == b"x"
    assert connection_id(connections) != number


def test_a_child_process_uses_its_own_connections(connections):
    number = connection_id(connections)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, str(connection_id(connections)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 20)) != number
    assert connection_id(connections) == number


def test_idle_connections_are_limited(connections, client):
    callers = MAX_IDLE + 8
    threads = [threading.Thread(target=ask, args=(connections, "BLPOP", f"go {n}", 20)) for n in range(callers)]
    for thread in threads:
        thread.start()
    pause = threading.Event()
    while open_connections(client, BLOCKED) < callers:
        pause.wait(0.01)
    for number in range(callers):
        client.rpush(f"go {number}", "x")
    for thread in threads:
        thread.join()
    while open_connections(client) > MAX_IDLE:
        pause.wait(0.01)
    assert open_connections(client) == MAX_IDLE


def test_a_closed_pool_keeps_no_connection(connections, client):
    connection_id(connections)
    assert open_connections(client) == 1
    connections.close()
    pause = threading.Event()
    while open_connections(client):
        pause.wait(0.01)
    ask(connections, "ECHO", "x")
    while open_connections(client):
        pause.wait(0.01)
