"""A Redis cluster of three masters with a replica each, whose masters fail over and whose slots move."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from servers import RedisServer, require, running_cluster, wait_for

MASTERS = 3
NODE_TIMEOUT = 1_500
"""Milliseconds after which the other nodes replace a master."""

SLOTS = 500
"""Slots that move at once, of 16,384."""


@contextmanager
def running() -> Iterator[Cluster]:
    """Run a cluster and yield it."""
    with running_cluster(2 * MASTERS, replicas=1, node_timeout=NODE_TIMEOUT) as nodes:
        cluster = Cluster(nodes)
        cluster.wait_until_safe()
        yield cluster


class Cluster:
    """A running cluster."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self._nodes = nodes

    @property
    def port(self) -> int:
        """The port of one node."""
        return self._nodes[0].port

    def fail_over(self, number: int) -> None:
        """Kill a master, wait until its replica has replaced it, and start it again as a replica."""
        masters = self._masters()
        failed = masters[number % len(masters)]
        failed.stop(kill=True)
        wait_for(lambda: len(self._masters()) == MASTERS, "the promotion of a replica")
        failed.start()
        self.wait_until_safe()

    def move_slots(self, number: int) -> None:
        """Move slots with all their keys from one master to another, as an operator does."""
        masters = self._masters()
        source, target = masters[number % len(masters)], masters[(number + 1) % len(masters)]
        command = [require("redis-cli", "redis-tools"), "--cluster", "reshard", f"127.0.0.1:{source.port}"]
        command += ["--cluster-from", _id(source), "--cluster-to", _id(target), "--cluster-slots", str(SLOTS)]
        done = subprocess.run([*command, "--cluster-yes"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr

    def wait_until_safe(self) -> None:
        """Wait until all slots are served and each replica has the data of its master, so that any master may fail."""
        wait_for(lambda: all(map(_is_safe, self._nodes)), "the cluster and its replicas")

    def _masters(self) -> list[RedisServer]:
        return [node for node in self._nodes if node.process is not None and _role(node) == "master"]


def _role(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.info("replication")["role"])


def _id(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.execute_command("CLUSTER MYID").decode())


def _is_safe(node: RedisServer) -> bool:
    with node.client() as client:
        serves = client.cluster("INFO")["cluster_state"] == "ok"
        link = client.info("replication").get("master_link_status", "up")  # a master has none
        return bool(serves and link == "up")
