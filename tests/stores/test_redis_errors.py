"""Each error of Redis, and of what stands in front of it, either passes or needs a correction; see ``redis/errors.py``."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from contextlib import closing, contextmanager, suppress

import pytest
from redis import exceptions
from servers import running_redis, wait_for

from celery_statemanager import StoreError, StoreUnavailable, open_store
from celery_statemanager.stores.redis.errors import translate
from celery_statemanager.testing import Grid

SECRET = "hunter2"

PASSES = {
    "OOM command not allowed when used memory > 'maxmemory'.": "is full",
    "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'": "is full",
    "ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed": "is full",
    "ERR Out of memory": "is full",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist on disk.": "its disk",
    "MISCONF Errors writing to the AOF file: No space left on device": "its disk",
    "READONLY You can't write against a read only replica.": "read-only replica",
    "ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write": "read-only replica",
    "NOREPLICAS Not enough good replicas to write.": "min-replicas-to-write",
    "LOADING Redis is loading the dataset in memory": "loading its data",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "lost its master",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "script",
    "ERR Error running script (call to f_0): Script killed by user with SCRIPT KILL...": "script",
    "CLUSTERDOWN Hash slot not served": "all slots",
    "CLUSTERDOWN The cluster is down": "all slots",
    "TRYAGAIN Multiple keys request during rehashing of slot": "all slots",
    "ERR max number of clients reached": "maxclients",
    "ERR max number of clients + cluster connections reached": "maxclients",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "cannot be reached",
    "no upstream host": "cannot be reached",
    "upstream failure": "cannot be reached",
}
NEVER = {
    "NOAUTH Authentication required.": "user name or password",
    "WRONGPASS invalid username-password pair or user is disabled.": "user name or password",
    "ERR invalid password": "user name or password",
    "NOPERM this user has no permissions to run the 'evalsha' command": "permit .*'evalsha'",
    "DENIED Redis is running in protected mode because protected mode is enabled": "protected-mode",
    "NOPROTO unsupported protocol version": "protocol=2",
    f"ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' '{SECRET}' ": "protocol=2",
    f"ERR unknown command `AUTH`, with args beginning with: `{SECRET}`, ": "Redis 5 or newer",
    "ERR unknown command 'XADD', with args beginning with: 'key'": "Redis 5 or newer",
    "ERR unsupported command 'EVALSHA'": "Redis 5 or newer",
    "ERR unknown subcommand 'X'. Try MEMORY HELP.": "Redis 5 or newer",
    "WRONGTYPE Operation against a key holding the wrong kind of value": r"\?prefix=",
    "MOVED 866 127.0.0.1:7001": r"redis\+cluster://",
    "ASK 866 127.0.0.1:7001": r"redis\+cluster://",
    "CROSSSLOT Keys in request don't hash to the same slot": r"redis\+cluster://",
    "ERR SELECT is not allowed in cluster mode": r"redis\+cluster://",
    "ERR This instance has cluster support disabled": "use redis://",
    "ERR DB index is out of range": "no database",
    "ERR Protocol error: invalid multibulk length": "not a Redis server",
    "ERR something new": "refused a call",
}
REPLIES = [(text, StoreUnavailable, hint) for text, hint in PASSES.items()] + [
    (text, StoreError, hint) for text, hint in NEVER.items()
]


@contextmanager
def answering(reply: str):
    """Listen on a port and answer every command with this error; yield the port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threads, clients = [], []

        def answer(client: socket.socket) -> None:
            with client:
                while received := client.recv(65_536):
                    client.sendall(f"-{reply}\r\n".encode() * len(re.findall(rb"(?:^|\n)\*\d+\r\n", received)))

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                clients.append(client)
                threads.append(threading.Thread(target=answer, args=(client,)))
                threads[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield listener.getsockname()[1]
        finally:
            for each in (listener, *clients):  # which ends the accept and the receives
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in (serving, *threads):
                thread.join()


@pytest.mark.parametrize(("reply", "kind", "hint"), REPLIES, ids=[text[:30] for text, *_ in REPLIES])
def test_each_reply_of_a_server_is_an_outage_or_names_what_to_correct(reply, kind, hint):
    with answering(reply) as port, open_store(f"redis://127.0.0.1:{port}", timeout=5.0) as store:
        for use in (store.now, lambda: store.put_worker("w", "{}", 1.0)):  # a command of redis-py, and a script
            with pytest.raises(StoreError, match=hint) as caught:
                use()
            assert type(caught.value) is kind
            assert SECRET not in f"{caught.value} {caught.value.__cause__!r} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.TimeoutError("Timeout reading from socket"), StoreUnavailable),
        (exceptions.ConnectionError("Too many connections"), StoreUnavailable),
        (exceptions.ConnectionError("No connection available."), StoreUnavailable),
        (exceptions.ConnectionError("[SSL: UNEXPECTED_EOF] EOF occurred in violation of protocol"), StoreUnavailable),
        (exceptions.ConnectionError("Error 1 connecting. [SSL: CERTIFICATE_VERIFY_FAILED] expired"), StoreError),
        (exceptions.ConnectionError("Error 13 connecting to unix socket: /a. Permission denied."), StoreError),
        (exceptions.ConnectionError("Error 2 connecting to unix socket: /a. No such file."), StoreUnavailable),
        (exceptions.ClusterError("TTL exhausted."), StoreUnavailable),
        (exceptions.SlotNotCoveredError("Slot not covered by the cluster."), StoreUnavailable),
        (exceptions.RedisClusterException("Redis Cluster cannot be connected."), StoreUnavailable),
        (exceptions.DataError("Invalid input of type: 'set'."), StoreError),
        (exceptions.ResponseError(""), StoreError),
        (exceptions.ResponseError("Command # 1 (HGET OOM) of pipeline caused error: ERR other"), StoreError),
        (OSError(104, "Connection reset by peer"), StoreUnavailable),
        (OSError(24, "Too many open files"), StoreUnavailable),
        (BrokenPipeError(32, "Broken pipe"), StoreUnavailable),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_of_the_client_pass_unless_a_correction_is_needed(error, kind):
    assert type(translate(error, "redis://x")) is kind


@pytest.fixture(scope="module")
def password_server():
    with running_redis(requirepass=SECRET) as server:
        yield server


@pytest.mark.parametrize("command", ["evalsha", "time", "xadd", "zadd", "hset", "select"])
def test_a_command_that_the_user_may_not_run_is_named(password_server, command):
    with password_server.client(password=SECRET) as client:
        client.acl_setuser(command, enabled=True, passwords=[f"+{SECRET}"], keys=["*"], categories=["+@all"])
        client.execute_command("ACL", "SETUSER", command, f"-{command}")
    with (
        open_store(f"redis://{command}:{SECRET}@127.0.0.1:{password_server.port}/1") as store,
        pytest.raises(StoreError, match=f"(?i)permit .*{command}") as caught,
    ):
        Grid.create(store).write("a", 0, 5)
    assert not isinstance(caught.value, StoreUnavailable)
    assert SECRET not in str(caught.value)


class TestRefusals:
    """A server that refuses writes for a while applies none of them, and all of them afterwards."""

    @pytest.fixture
    def server(self):
        with running_redis(save="3600 1") as server:
            yield server

    @pytest.fixture
    def client(self, server):
        with server.client() as client:
            yield client

    @pytest.fixture
    def grid(self, server):
        with open_store(server.url, timeout=2.0) as store:
            yield Grid.create(store, 2, ("a",))

    def test_a_disk_to_which_the_server_cannot_save(self, server, client, grid):
        shutil.rmtree(server.directory)
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the failed save")
        with pytest.raises(StoreUnavailable, match="its disk"):
            grid.write("a", 0, 5)
        client.config_set("save", "")  # without which it would not stop either
        assert grid.write("a", 0, 5).cell.version == 1

    def test_too_few_replicas(self, client, grid):
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(StoreUnavailable, match="min-replicas-to-write"):
            grid.write("a", 0, 5)
        client.config_set("min-replicas-to-write", 0)
        assert grid.write("a", 0, 5).cell.version == 1

    def test_an_endless_script_of_another_client(self, server, client, grid):
        client.config_set("lua-time-limit", 1)

        def run_for_ever() -> None:
            with server.client() as other, pytest.raises(exceptions.ResponseError, match="killed"):
                other.eval("while true do end", 0)

        running = threading.Thread(target=run_for_ever)
        running.start()
        with pytest.raises(StoreUnavailable, match="script"):
            wait_for(lambda: grid.lowest().status < 0, "the script")
        client.script_kill()
        running.join()
        assert grid.write("a", 0, 5).cell.version == 1

    def test_too_many_clients(self, client, server):
        client.config_set("maxclients", 1)
        with open_store(server.url) as store:
            with pytest.raises(StoreUnavailable, match="maxclients"):
                store.now()
            client.config_set("maxclients", 100)
            assert store.now() > 0

    def test_scripts_that_the_server_has_flushed_are_sent_again(self, client, grid):
        grid.write("a", 0, 5)
        client.script_flush()
        assert grid.write("a", 0, 6).cell.version == 2
