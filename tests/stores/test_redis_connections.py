"""The connections that send scripts are reused, but never after a failure or across a fork."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import redis
from servers import running_cluster, running_redis, running_sentinel, wait_for

from celery_statemanager import ConfigurationError, StoreUnavailable, open_store
from celery_statemanager.stores.redis import RedisStore
from celery_statemanager.stores.redis.address import UNLIMITED
from celery_statemanager.stores.redis.connections import MAX_IDLE, Connections
from celery_statemanager.testing import Grid

OURS = "connections-under-test"
BLOCKED = "b"
"""The flag of a client that waits in a blocking command."""


class InterruptedByTestError(Exception):
    pass


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


@pytest.fixture(scope="module")
def places():
    with running_redis() as server, running_sentinel() as (master, sentinel), running_cluster() as nodes:
        yield {
            "plain": (server.url, [server]),
            "sentinel": (f"redis+sentinel://127.0.0.1:{sentinel.port}/mine", [master]),
            "cluster": (f"redis+cluster://127.0.0.1:{nodes[0].port}", nodes),
        }


@pytest.fixture(params=["plain", "sentinel", "cluster"])
def place(request, places):
    return places[request.param]


class TestManyThreads:
    """Pools of redis-py 8 have at most 100 connections and raise when they are in use."""

    THREADS = 120

    @staticmethod
    @contextmanager
    def stopped(servers):
        """Stop servers for a while. Their system still accepts connections and requests."""
        for server in servers:
            server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for server in servers:
                server.process.send_signal(signal.SIGCONT)

    @contextmanager
    def only_connection_in_use(self, store, servers, key):
        """Let a thread use the only connection of a store, by a call that its stopped server answers at the end."""
        with self.stopped(servers), ThreadPoolExecutor(1) as threads:
            first = threads.submit(store.get_job, key)
            wait_for(lambda: store._server._limit._free._value == 0, "the first call")
            yield
            servers[0].process.send_signal(signal.SIGCONT)
            assert first.result().job_id == key.job_id

    def read_at_once(self, store, servers, key, busy):
        """Read a job by many threads while its servers are stopped, until so many connections are busy."""
        ports = {server.port for server in servers}
        opened = lambda: sum(  # noqa: E731 - shorter than its name
            each.raddr and each.raddr.port in ports and each.status == psutil.CONN_ESTABLISHED
            for each in psutil.Process().net_connections("tcp")
        )
        with ThreadPoolExecutor(self.THREADS) as threads:
            with self.stopped(servers):
                before = opened()
                reading = [threads.submit(store.get_job, key) for _ in range(self.THREADS)]
                wait_for(lambda: opened() >= max(before, busy), "connections")
            return [each.result().job_id for each in reading], opened()

    def test_each_thread_gets_a_connection(self, place):
        url, servers = place
        with open_store(url, timeout=30.0) as store:
            job = Grid.create(store, job_id="unlimited").job
            found, _ = self.read_at_once(store, servers, job.key, self.THREADS)
            assert found == ["unlimited"] * self.THREADS

    def test_threads_wait_for_one_of_a_limited_number(self, place):
        url, servers = place
        with open_store(url, timeout=30.0, max_connections=5) as store:
            grid = Grid.create(store, job_id="limited")
            found, used = self.read_at_once(store, servers, grid.job.key, 5)
            assert found == ["limited"] * self.THREADS
            assert (
                used <= 5 * len(servers) + 1
            )  # and one to a sentinel, whose port is not counted, or to a start-up node
            assert grid.write("a", 0, 5).cell.version == 1

    def test_a_thread_that_waits_too_long_gets_store_unavailable(self, places):
        url, servers = places["plain"]
        with open_store(url, timeout=1.0, max_connections=1, socket_timeout=30.0) as store:
            key = Grid.create(store, job_id="slow").job.key
            with (
                self.only_connection_in_use(store, servers, key),
                pytest.raises(StoreUnavailable, match="increase its max_connections"),
            ):
                store.get_job(key)
            assert store.get_job(key).job_id == "slow"

    def test_threads_wait_for_a_connection_of_a_client_that_was_passed_in(self, places):
        _, servers = places["plain"]
        with servers[0].client(max_connections=5) as client, RedisStore(client, timeout=30.0) as store:
            key = Grid.create(store, job_id="passed in").job.key
            found, used = self.read_at_once(store, servers, key, 5)
            assert found == ["passed in"] * self.THREADS
            assert used <= 5

    def test_a_child_has_the_whole_limit_again(self, places):
        url, servers = places["plain"]
        with open_store(url, timeout=5.0, max_connections=1, socket_timeout=30.0) as store:
            key = Grid.create(store, job_id="forked").job.key
            with self.only_connection_in_use(store, servers, key):
                child = os.fork()
                if not child:
                    os._exit(store.get_job(key).job_id != "forked")
            assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.parametrize("limit", [-1, "many", True, 1.5])
    def test_an_invalid_limit_is_rejected(self, limit):
        with pytest.raises(ConfigurationError, match="max_connections"):
            open_store("redis://localhost", max_connections=limit)

    def test_a_limit_of_zero_means_no_limit(self, places):
        with open_store(f"{places['plain'][0]}?max_connections=0") as store:
            assert store.now() > 0
            assert store._server.client.connection_pool.max_connections == UNLIMITED
