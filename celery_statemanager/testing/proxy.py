"""A TCP proxy in front of a broker or a store, to cut and refuse real connections."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing resets the connection."""

_CHUNK = 65_536


class Proxy:
    """Listen on a free local port and forward all data to a server. Also a context manager.

    Args:
        host: the host of the server.
        port: the port of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> int:
        """Reset every connection. New ones are accepted. Returns: the number of reset connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            pair.reset()
        return len(pairs)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Reset every connection, and each new one at once, inside the block."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    def close(self) -> None:
        """Stop listening and reset the remaining connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = None if self._refusing else socket.create_connection(self._server, 5)
            except OSError:
                server = None
            self._start(_Pair(client, server))

    def _start(self, pair: _Pair) -> None:
        if not pair.alive:
            pair.reset()
            return
        with self._lock:
            self._pairs = {pair, *(each for each in self._pairs if each.alive)}
            refused = self._refusing
        threading.Thread(target=pair.run, name="proxy-pair", daemon=True).start()
        if refused:
            pair.reset()


class _Pair:
    """The connection of a client and the corresponding one to the server, which is None if there is none."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self._ends = [client] if server is None else [client, server]
        self.alive = server is not None

    def run(self) -> None:
        """Forward bytes until one side closes."""
        with selectors.DefaultSelector() as selector:
            client, server = self._ends
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            with suppress(OSError):
                while self._forward(selector):
                    pass
        self._close()

    def reset(self) -> None:
        """Reset both connections at once, as a server that dies does."""
        for end in self._ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                if self.alive:
                    end.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes
        if not self.alive:
            self._close()
        self.alive = False

    @staticmethod
    def _forward(selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select():
            data = key.fileobj.recv(_CHUNK)  # type: ignore[union-attr]
            if not data:
                return False
            key.data.sendall(data)
        return True

    def _close(self) -> None:
        self.alive = False
        for end in self._ends:
            end.close()
