"""A Redis server that is misconfigured, full, foreign or unavailable causes one clear error and no partial write."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from contextlib import closing, contextmanager

import pytest
from redis_kit import check_refused_when_full
from servers import RedisServer, running_cluster, running_redis, running_sentinel, wait_for

from celery_statemanager import ConfigurationError, JobNotFound, StoreError, StoreUnavailable, open_store
from celery_statemanager.models import Scope
from celery_statemanager.records import JobKey
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import PATIENCE, purge, read_until
from celery_statemanager.testing.ports import free_port

SECRET = "hunter2"


@contextmanager
def raises_permanent_error(match: str):
    """Expect a StoreError that is permanent, has one line and shows no password."""
    with pytest.raises(StoreError, match=match) as caught:
        yield
    assert not isinstance(caught.value, StoreUnavailable)
    assert caught.value.__cause__ is not None
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@contextmanager
def serve_reply(reply: bytes | None):
    """Listen on a port and send each client this reply, or nothing for None; yield the port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        accepted = []

        def serve() -> None:
            while True:
                try:
                    client_socket, _ = listener.accept()
                except OSError:
                    return
                accepted.append(client_socket)
                if reply is not None:
                    client_socket.sendall(reply)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which ends the accept
            serving.join()
            for client_socket in accepted:
                client_socket.close()


class TestBadInput:
    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{SECRET}@localhost:port/0",
            f"redis://:{SECRET}@localhost/db",
            f"redis://:{SECRET}@localhost:70000/0",
            f"redis://:{SECRET}@localhost/0?socket_timeout=soon",
            f"redis://:{SECRET}@localhost/0?no_such_option=1",
            f"redis://:{SECRET}@localhost/0?decode_responses=1",
            f"redis://:{SECRET}@localhost/0?retry_on_timeout=1",
            f"redis://:{SECRET}@localhost/0?prefix={{a}}",
            f"redis://:{SECRET}@localhost/1?cluster=true",
            f"redis+cluster://:{SECRET}@localhost/0?no_such_option=1",
            f"redis+sentinel://:{SECRET}@localhost/service/db",
            f"redis://:{SECRET}@[::1/0",
            f"redis://:12/{SECRET}@localhost/0",
            f"rediss://:{SECRET}@localhost/0?ssl_no_such=1",
            f"redis://:{SECRET}@localhost?stream_length=long",
            f"reddis://:{SECRET}@localhost",
        ],
    )
    def test_an_invalid_url_is_rejected_before_connecting(self, url):
        with pytest.raises(ConfigurationError) as caught:
            open_store(url)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("option", ["timeout", "stream_length"])
    def test_an_option_that_is_not_a_number_is_named(self, option):
        with pytest.raises(ConfigurationError, match=f"cannot be used: {option} must be a number, not 'soon'"):
            open_store(f"redis://:{SECRET}@localhost?{option}=soon")

    def test_a_server_that_is_not_a_sentinel_is_reported(self, redis_server):
        with (
            open_store(f"redis+sentinel://127.0.0.1:{redis_server.port}/mymaster") as store,
            raises_permanent_error("not a sentinel"),
        ):
            store.now()

    def test_a_missing_database_is_named(self, redis_server):
        with open_store(f"redis://127.0.0.1:{redis_server.port}/99") as store, raises_permanent_error("no database"):
            store.now()

    @pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    def test_a_port_that_is_not_redis_is_reported(self, reply):
        with serve_reply(reply) as port, open_store(f"redis://:{SECRET}@127.0.0.1:{port}") as store:
            with raises_permanent_error("not a Redis server"):
                store.now()

    def test_a_port_that_does_not_respond_times_out(self):
        with serve_reply(None) as port, open_store(f"redis://:{SECRET}@127.0.0.1:{port}", timeout=0.3) as store:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                store.now()
            assert time.monotonic() - start < 5
            assert SECRET not in str(caught.value)

    def test_a_closed_port_raises_unavailable(self):
        with open_store("redis://127.0.0.1:1") as store:
            for use in (
                store.now,
                lambda: list(store.list_workers()),
                lambda: store.get_job(JobKey("job")),
                store.list_jobs,
                lambda: Grid.create(store),
            ):
                with pytest.raises(StoreUnavailable, match=":1 cannot be reached"):
                    use()

    def test_a_single_server_used_as_a_cluster_is_reported(self, redis_server):
        with open_store(redis_server.url + "?cluster=true") as store, raises_permanent_error("cluster"):
            store.now()

    def test_a_cluster_node_used_as_a_single_server_is_reported(self, redis_nodes):
        with open_store(redis_nodes[0].url) as store, raises_permanent_error("cluster=true"):
            for number in range(50):
                Grid.create(store, job_id=f"job {number}")


@pytest.fixture(scope="module")
def password_server():
    with running_redis(requirepass="right") as server:
        yield server


class TestPasswords:
    @pytest.mark.parametrize("login", ["", f":{SECRET}@", f"nobody:{SECRET}@"])
    def test_a_wrong_password_is_rejected_and_not_shown(self, password_server, login):
        with (
            open_store(f"redis://{login}127.0.0.1:{password_server.port}/0") as store,
            raises_permanent_error("user name or password"),
        ):
            store.now()

    def test_a_correct_password_is_accepted(self, password_server):
        with open_store(f"redis://:right@127.0.0.1:{password_server.port}/0") as store:
            assert Grid.create(store).write("a", 0, 5).cell.version == 1
            assert "right" not in repr(store._server.shown)

    def test_a_user_without_permission_is_reported(self, password_server):
        with password_server.client(password="right") as client:
            client.acl_setuser("reader", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], categories=["+@read"])
        with (
            open_store(f"redis://reader:{SECRET}@127.0.0.1:{password_server.port}/0") as store,
            raises_permanent_error("does not permit"),
        ):
            Grid.create(store)


class TestServerErrors:
    @pytest.fixture
    def server(self):
        with running_redis() as server:
            yield server

    @pytest.fixture
    def store(self, server):
        with open_store(server.url) as store:
            yield store

    def test_a_full_server_rejects_a_call_completely(self, server, store):
        grid = Grid.create(store, 3, ("a", "b"))
        grid.begin("a", 0, owner="w")
        steps = [
            lambda: grid.write("a", 1, 5),
            lambda: grid.end("a", 0, -1),
            lambda: grid.begin("a", 2, owner="w"),
            grid.cancel,
            lambda: store.put_worker("w", "{}", 1.0),
            lambda: Grid.create(store, job_id="other"),
        ]
        with server.client() as client:
            check_refused_when_full(client, steps)
            assert grid.lowest().status == 0
            assert len(grid.states()) == 1
            assert store.delete_job(grid.job)
            purge(store)
            client.config_set("maxmemory", 0)
            assert list(client.scan_iter()) == []
        assert Grid.create(store).write("a", 0, 5).cell.version == 1

    def test_a_replica_is_unavailable_for_writes_until_promoted(self, server, store):
        grid = Grid.create(store, 1, ("a",))
        with server.client() as client:
            client.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="read only"):
                grid.write("a", 0, 5)
            assert grid.lowest("a").status == 0
            client.config_set("replica-serve-stale-data", "no")
            with pytest.raises(StoreUnavailable):
                grid.lowest("a")
            client.replicaof("NO", "ONE")
        assert grid.write("a", 0, 5).cell.version == 1

    @pytest.mark.parametrize("options", ["", "&max_connections=5"])
    def test_connections_to_a_server_that_became_a_replica_are_closed(self, server, options):
        with open_store(f"{server.url}?client_name=ours{options}") as store, server.client() as client:
            grid = Grid.create(store)
            store.get_job(grid.job.key)
            names = lambda: [each["name"] for each in client.client_list()]  # noqa: E731 - shorter than its name
            assert "ours" in names()
            client.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="replica"):
                grid.write("a", 0, 5)
            wait_for(lambda: "ours" not in names(), "the end of the connections")
            client.replicaof("NO", "ONE")
            assert grid.write("a", 0, 5).cell.version == 1

    def test_other_data_under_the_prefix_are_reported(self, server, store):
        with server.client() as client:
            client.set("statemanager:{job}", "mine")
        with raises_permanent_error("another prefix with"):
            Grid.create(store)

    def test_a_too_old_server_is_reported_and_stores_no_job(self):
        with running_redis(rename_command="XADD ''") as server, open_store(server.url) as store:
            with raises_permanent_error("Redis 5 or newer"):
                Grid.create(store)
            with pytest.raises(JobNotFound):
                store.get_job(JobKey("job"))

    def test_a_restarted_server_without_data_has_no_jobs(self, server, store):
        grid = Grid.create(store)
        server.stop(kill=True)
        with pytest.raises(StoreUnavailable):
            grid.write("a", 0, 5)
        server.start()
        with pytest.raises(JobNotFound):
            grid.write("a", 0, 5)
        assert store.list_jobs().jobs == []
        assert Grid.create(store).write("a", 0, 5).cell.version == 1


@pytest.fixture(scope="module")
def nodes():
    with running_cluster() as servers:
        yield servers


class TestCluster:
    @pytest.fixture
    def store(self, nodes):
        with open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}", timeout=2.0) as store:
            yield store

    def test_a_job_is_found_after_its_slot_has_moved(self, nodes, store):
        grid = Grid.create(store, 2, ("a",), job_id="moving")
        grid.write("a", 0, 5)
        watch = store.watch(grid.ref, Scope())
        with grid.manager().subscribe() as events:
            assert events.get(PATIENCE).state.status == 5
            _move(nodes, store, JobKeys("statemanager", grid.ref).head)
            assert grid.write("a", 0, 6).cell.version == 2
            assert grid.lowest("a", 0).status == 6
            with pytest.raises(StoreUnavailable):
                read_until(watch, lambda batch: False)
            assert events.get(PATIENCE).state.status == 6
        watch.close()

    def test_a_dead_node_raises_unavailable_within_the_timeout(self, nodes, store):
        grids = [Grid.create(store, job_id=f"job {number}") for number in range(12)]
        nodes[2].stop(kill=True)
        outcomes = set()
        for grid in grids:
            start = time.monotonic()
            try:
                grid.write("a", 0, 5)
                outcomes.add("written")
            except StoreUnavailable:
                outcomes.add("unavailable")
            assert time.monotonic() - start < 10
        assert "unavailable" in outcomes
        nodes[2].start()
        for node in nodes:  # the restarted node accepts no writes at first
            with node.client() as client:
                wait_for(lambda client=client: client.cluster("INFO")["cluster_state"] == "ok", "the cluster")
        fresh = Grid.create(store, job_id="after")
        assert fresh.write("a", 0, 5).cell.version == 1


def _move(nodes: list[RedisServer], store, key: str) -> None:
    """Move the slot of a key, with all its keys, to another node as an operator does."""
    cluster = store._server.client
    slot = cluster.keyslot(key)
    by_port = {node.port: node for node in nodes}
    source = by_port[cluster.get_node_from_key(key).port]
    target = next(node for node in nodes if node is not source)
    with source.client() as leaving, target.client() as taking:
        ids = {client: client.execute_command("CLUSTER MYID").decode() for client in (leaving, taking)}
        taking.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[leaving])
        leaving.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[taking])
        keys = leaving.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
        leaving.migrate("127.0.0.1", target.port, keys, 0, 5000)
        for node in nodes:
            with node.client() as client:
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[taking])


def test_a_server_is_reached_through_a_unix_socket():
    with running_redis(unixsocket="redis.sock") as server:
        with open_store(f"redis+unix://{server.directory}/redis.sock?db=1") as store:
            assert Grid.create(store).write("a", 0, 5).cell.version == 1
        with server.client(db=1) as client:
            assert client.dbsize() > 0


@pytest.fixture
def sentinel():
    with running_sentinel() as servers:
        yield servers


def test_a_server_behind_sentinels_is_found(sentinel):
    with open_store(f"redis+sentinel://127.0.0.1:{sentinel[1].port}/mine/0") as store:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5)
        assert watch.read(PATIENCE).states[0].status == 5
        watch.close()


def test_a_service_that_no_sentinel_knows_is_an_outage_that_names_the_url(sentinel):
    with open_store(f"redis+sentinel://127.0.0.1:{sentinel[1].port}/other") as store:
        with pytest.raises(StoreUnavailable, match="the name of the service in the URL"):
            store.now()


def test_sentinels_have_their_own_credentials():
    with running_sentinel(SECRET) as (_, watcher):
        url = f"redis+sentinel://127.0.0.1:{watcher.port}/mine"
        for login in ("", "?sentinel_password=wrong"):
            with open_store(url + login) as store, raises_permanent_error("sentinel_password"):
                store.now()
        with open_store(f"{url}?sentinel_password={SECRET}") as store:
            assert Grid.create(store).write("a", 0, 5).cell.version == 1
            assert SECRET not in repr(store)


class TestProtocol:
    """Servers before version 6 and some proxies do not support HELLO, which version 3 of the protocol needs."""

    @staticmethod
    def says_hello(server: RedisServer, url: str) -> bool:
        with server.client(protocol=2) as client, open_store(url) as store:
            client.config_resetstat()
            grid = Grid.create(store, job_id=url)
            store.watch(grid.ref, Scope()).close()
            assert grid.write("a", 0, 5).cell.version == 1
            return "cmdstat_hello" in client.info("commandstats")

    @pytest.mark.parametrize(("option", "expected"), [("", False), ("?protocol=2", False), ("?protocol=3", True)])
    def test_version_2_is_the_default(self, option, expected):
        with running_redis() as server:
            assert self.says_hello(server, server.url + option) is expected

    def test_a_server_without_hello_works(self):
        with running_redis(rename_command="HELLO ''") as server:
            with open_store(server.url) as store:
                assert Grid.create(store).write("a", 0, 5).cell.version == 1
            with open_store(f"{server.url}?protocol=3") as store, raises_permanent_error("use protocol=2"):
                store.now()

    @pytest.mark.parametrize(("option", "expected"), [("", False), ("?protocol=3", True)])
    def test_sentinels_always_get_version_2(self, sentinel, option, expected):
        server, watcher = sentinel
        with watcher.client(protocol=2) as client:
            assert self.says_hello(server, f"redis+sentinel://127.0.0.1:{watcher.port}/mine{option}") is expected
            assert {each["resp"] for each in client.client_list()} == {"2"}

    def test_version_2_is_the_default_of_a_cluster(self, nodes):
        for node in nodes:
            assert not self.says_hello(node, f"redis+cluster://127.0.0.1:{node.port}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: apt-get install openssl")
def test_tls_works_and_an_untrusted_certificate_is_reported(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "2",
    ]
    subprocess.run(
        [*made, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    options = {
        "tls_cert_file": certificate,
        "tls_key_file": key,
        "tls_ca_cert_file": certificate,
        "tls_auth_clients": "no",
    }
    with running_redis(tls_port=free_port(), **options) as server:
        url = f"rediss://127.0.0.1:{server.options['tls_port']}/0"
        with open_store(f"{url}?ssl_ca_certs={certificate}") as store:
            grid = Grid.create(store)
            watch = store.watch(grid.ref, Scope())
            reading = threading.Thread(target=watch.read, args=(60.0,))
            reading.start()
            watch.close()
            reading.join(PATIENCE)
            assert not reading.is_alive()
        with open_store(url) as store, raises_permanent_error("TLS"):
            store.now()
        with open_store(f"redis://127.0.0.1:{server.options['tls_port']}") as store, pytest.raises(StoreError):
            store.now()
        with open_store(f"rediss://:{SECRET}@127.0.0.1:{server.port}", timeout=0.3) as store:
            with pytest.raises(StoreUnavailable, match=r"TLS handshake.* use redis://"):
                store.now()
