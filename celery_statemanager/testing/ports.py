"""Free ports for the servers of tests."""

from __future__ import annotations

import random
import socket

OURS = range(10_000, 30_000)
"""Ports below those of outgoing connections.

An outgoing connection could take a port before its server starts, or while it restarts. A client of a stopped server
could then even connect to itself.
"""


def free_port() -> int:
    """Return a port that is not in use."""
    while True:
        port = random.SystemRandom().choice(OURS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
