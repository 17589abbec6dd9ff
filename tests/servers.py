"""Real servers for tests, each on a free port and in a temporary directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from celery_statemanager.testing.ports import free_port

PATIENCE = 20.0
"""Seconds to wait for a server to start or stop."""


READY = "Ready to accept connections"


def require(program: str, package: str) -> str:
    """Return the path of a program. If it is not installed, skip the test, or fail it if ``CI`` is ``true``."""
    path = shutil.which(program)
    if path is None:
        skip_or_fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        skip_or_fail(f"{program} is not installed: apt-get install {package}")
    return str(path)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition is true.

    Raises: AssertionError after ``PATIENCE`` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {PATIENCE} s: {what}"
        pause.wait(0.02)


class RedisServer:
    """One redis-server process, restartable on its port and directory.

    Args:
        options: settings as in redis.conf, by name with ``_`` for ``-``.
    """

    def __init__(self, directory: Path, **options: object) -> None:
        self.directory = directory
        self.port = free_port()
        self.options = {"save": "", "appendonly": "no", "bind": "127.0.0.1", **options}
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(port=self.port, **options)  # type: ignore[arg-type]

    def start(self) -> RedisServer:
        command = [require("redis-server", "redis-server"), "--port", str(self.port), "--dir", str(self.directory)]
        for name, value in self.options.items():
            command += [f"--{name.replace('_', '-')}", *(str(value).split() if value else [""])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ready, lines = threading.Event(), []
        threading.Thread(target=self._read_output, args=(self.process, ready, lines), daemon=True).start()
        if not ready.wait(PATIENCE) or not any(READY in line for line in lines):
            raise AssertionError("redis-server did not start:\n" + "".join(lines))
        return self

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait(PATIENCE)
            self.process = None

    def _read_output(self, process: subprocess.Popen[str], ready: threading.Event, lines: list[str]) -> None:
        """Collect output until the server is ready or ends, and drop the rest."""
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                if not ready.is_set():
                    lines.append(line)
                if READY in line:
                    ready.set()
        ready.set()


@contextmanager
def running_redis(**options: object) -> Iterator[RedisServer]:
    """Run a redis-server and yield it."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(Path(directory), **options)
        try:
            yield server.start()
        finally:
            server.stop()


def cut_connections(url: str) -> None:
    """Close the connections of other processes to one database of a Redis server, as a network failure does.

    A connection of this process may wait in a pool of Celery, and a later test would be the first to notice its loss.
    """
    with redis.Redis.from_url(url) as client:
        database = str(client.connection_pool.connection_kwargs["db"])
        own = {f"{each.laddr.ip}:{each.laddr.port}" for each in psutil.Process().net_connections("tcp")}
        for each in client.client_list():
            if each["db"] == database and each["addr"] not in own:
                client.client_kill_filter(_id=each["id"])


@contextmanager
def running_cluster(nodes: int = 3, replicas: int = 0, node_timeout: int = 15_000) -> Iterator[list[RedisServer]]:
    """Run a Redis cluster that serves all slots, and yield its nodes.

    Args:
        replicas: replicas of each master, which are some of the nodes.
        node_timeout: milliseconds after which a node counts as failed.
    """
    with tempfile.TemporaryDirectory(prefix="redis-cluster-") as directory:
        servers = []
        try:
            for number in range(nodes):
                home = Path(directory, str(number))
                home.mkdir()
                options = {"cluster_enabled": "yes", "cluster_port": free_port(), "cluster_node_timeout": node_timeout}
                servers.append(RedisServer(home, **options).start())
            _join(servers, replicas)
            yield servers
        finally:
            for server in servers:
                server.stop()


def _join(servers: list[RedisServer], replicas: int) -> None:
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    command = [require("redis-cli", "redis-tools"), "--cluster", "create", *addresses, "--cluster-yes"]
    command += ["--cluster-replicas", str(replicas)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    for server in servers:
        with server.client() as client:
            wait_for(lambda client=client: client.cluster("INFO")["cluster_state"] == "ok", "the cluster")


@contextmanager
def running_sentinel(password: str = "") -> Iterator[tuple[RedisServer, RedisServer]]:
    """Run a redis-server and a sentinel, with a password of its own, that monitors it as "mine"; yield both."""
    with running_redis() as server, tempfile.TemporaryDirectory(prefix="sentinel-") as directory:
        sentinel = RedisServer(Path(directory))
        config = Path(directory, "sentinel.conf")
        config.write_text(
            f"port {sentinel.port}\nbind 127.0.0.1\nsentinel monitor mine 127.0.0.1 {server.port} 1\n"
            + (f"requirepass {password}\n" if password else "")
        )
        command = [require("redis-server", "redis-server"), str(config), "--sentinel"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                with sentinel.client(password=password or None) as client:
                    wait_for(lambda: _responds(client), "the sentinel")
                yield server, sentinel
            finally:
                process.terminate()


def _responds(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
