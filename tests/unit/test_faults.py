"""The fault injectors work as documented; the tests that use them rely on it."""

import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress

import psutil
import pytest
from celery import Celery

from celery_statemanager import StoreUnavailable
from celery_statemanager.models import Scope
from celery_statemanager.records import Batch
from celery_statemanager.stores import open_store
from celery_statemanager.testing import FaultyStore, Grid, Proxy, processes
from celery_statemanager.testing.celery import published
from celery_statemanager.testing.kit import FINISHED, PATIENCE, read_until


@pytest.fixture
def store(tmp_path):
    with open_store(f"sqlite:///{tmp_path}/states.db") as inner:
        yield FaultyStore(inner)


@pytest.fixture
def grid(store):
    return Grid.create(store, 2, ("a",))


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_response_is_applied_or_not_as_requested(store, grid, applied):
    store.lose_response("write", applied=applied)
    with pytest.raises(StoreUnavailable, match="response to write was lost"):
        grid.write("a", 0, FINISHED)
    assert (grid.cell("a", 0).status == FINISHED) is applied
    assert grid.write("a", 1, FINISHED).changed


def test_faults_occur_in_the_requested_order_and_end(store, grid):
    store.lose_response("now", applied=False, times=2)
    seen = []
    store.at("now", seen.append, after=True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.now()
    now = store.now()
    assert seen == [now]
    assert store.now() >= now
    assert seen == [now]


def test_an_unavailable_store_rejects_calls_and_breaks_watches(store, grid):
    watch = store.watch(grid.ref, Scope())
    with store.away():
        with pytest.raises(StoreUnavailable):
            store.now()
        with pytest.raises(StoreUnavailable):
            watch.read(0)
    assert store.now()
    watch.close()


def test_a_file_makes_a_store_unavailable(tmp_path, store):
    switched = FaultyStore(store, down=(tmp_path / "down").exists)
    assert switched.now()
    (tmp_path / "down").touch()
    with pytest.raises(StoreUnavailable):
        switched.now()


def test_a_watch_resyncs_after_dropped_notifications(store, grid):
    with closing(store.watch(grid.ref, Scope())) as watch:
        with store.silent():
            grid.write("a", 0, 7)
            with closing(store.inner.watch(grid.ref, Scope())) as witness:
                grid.write("a", 0, 8)
                assert read_until(witness, lambda batch: batch.states)
            assert watch.read(0.2) == Batch([])
        assert read_until(watch, lambda batch: batch.resync)


def test_a_subscription_recovers_from_dropped_notifications(store, grid):
    with grid.manager().subscribe("a") as events:
        with store.silent():
            grid.write("a", 0, 7)
        grid.write("a", 1, 9)
        last = {}
        while last != {0: 7, 1: 9}:
            event = events.get(PATIENCE)
            last[event.state.task_index] = event.state.status


@pytest.fixture
def echo_port():
    """Yield the port of a server that sends back what it receives."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve(client):
            with client:
                while data := received(client):
                    client.sendall(data)

        def accept():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def received(connection):
    """Return the received bytes; none if the connection is closed or broken."""
    try:
        return connection.recv(100)
    except ConnectionError:
        return b""


def connected(port):
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.settimeout(PATIENCE)
    return connection


def is_refused(port):
    try:
        with connected(port) as connection:
            return received(connection) == b""
    except ConnectionError:
        return True


def test_a_proxy_forwards_cuts_and_refuses_connections(echo_port):
    with Proxy("127.0.0.1", echo_port) as proxy:
        with connected(proxy.port) as first:
            first.sendall(b"hello")
            assert first.recv(100) == b"hello"
            assert proxy.cut() == 1
            assert received(first) == b""
        with proxy.down():
            assert is_refused(proxy.port)
        with connected(proxy.port) as third:
            third.sendall(b"again")
            assert third.recv(100) == b"again"
    with pytest.raises(ConnectionError):
        connected(proxy.port)


def test_a_proxy_without_a_server_resets_connections():
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy:
        assert is_refused(proxy.port)


@pytest.fixture
def parent():
    """Yield a process that has a child, and the child's process id."""
    code = (
        "import subprocess,sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    yield process, int(process.stdout.readline())
    processes.kill(process.pid)
    process.wait(PATIENCE)
    process.stdout.close()


def test_a_process_and_its_children_are_paused_resumed_and_killed(parent):
    process, child = parent
    with processes.paused(process.pid):
        assert {each.status() for each in processes.family(process.pid)} == {psutil.STATUS_STOPPED}
    assert psutil.STATUS_STOPPED not in {each.status() for each in processes.family(process.pid)}
    processes.kill(process.pid)
    assert process.wait(PATIENCE) == -9
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert processes.family(process.pid) == []


def test_a_redelivered_message_is_unchanged():
    app = Celery("twice", broker="memory://", set_as_current=False)

    @app.task(shared=False)
    def nothing(value): ...

    with published(app) as messages:
        nothing.apply_async((3,), headers={"mine": "yes"}, queue="twice")
    nothing.apply_async((4,), queue="twice")
    (message,) = messages
    assert message.task == nothing.name
    message.redeliver()
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("twice")
        first, other, again = (queue.get(timeout=PATIENCE) for _ in range(3))
        assert (again.payload, again.headers, again.properties["correlation_id"]) == (
            first.payload,
            first.headers,
            first.properties["correlation_id"],
        )
        assert first.headers["id"] == message.id != other.headers["id"]
        queue.close()
