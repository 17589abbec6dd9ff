"""Ports for tests' servers."""

from __future__ import annotations

import random
import socket

OURS = range(10_000, 30_000)
"""Below those that systems give to outgoing connections: one of these could take a port before its server does, or
while it restarts, and who calls a server that is down could meet itself."""


def free_port() -> int:
    """Give a port that nobody has."""
    while True:
        port = random.SystemRandom().choice(OURS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
