"""Free ports for the servers of tests."""

from __future__ import annotations

import random
import socket

OURS = range(10_000, 30_000)
"""Below the ports of outgoing connections. Such a connection could otherwise take a port while its server is down, and
a client that connects to this server could connect to itself."""


def free_port() -> int:
    """Return a free port."""
    while True:
        port = random.SystemRandom().choice(OURS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
