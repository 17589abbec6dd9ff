"""Connections to Firestore: made on first use, one per process, and calls with an end.

No call is repeated here but reads: the client library would, for minutes, and what must not be repeated too.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery_statemanager.stores.firestore.address import Address
from celery_statemanager.stores.firestore.errors import FINAL, TRANSIENT, Deadline, translated
from celery_statemanager.stores.firestore.transports import Client, ClientFactory, Metadata, Transport, metadata_of
from celery_statemanager.stores.forking import fork_aware

STREAM_TRIES = 4
"""Streams that may fail, the server answering between them, before a process that never read one stops trying."""

_abandoned: list[object] = []


class Connection:
    """Calls of one store. Thread-safe; a forked child makes a client of its own.

    What a child inherits is neither used nor closed there: either may hang in gRPC.
    """

    def __init__(self, address: Address, timeout: float, transport: Transport, make_client: ClientFactory) -> None:
        self.address = address
        self.timeout = timeout
        self.clock = ServerClock()
        self._chosen = self._transport = transport
        self._make_client = make_client
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._streams_left: float = STREAM_TRIES
        self._pid = os.getpid()
        self._metadata: Metadata = ()
        fork_aware(self)

    def deadline(self) -> Deadline:
        """Give the time that one call of the store may take."""
        return Deadline(self.timeout)

    def once(self, method: str, request: Any, deadline: Deadline) -> Any:
        """Make one call. Raises: StoreError; Transient – it may or may not have been done."""
        try:
            return getattr(self.client(), method)(request, timeout=deadline.for_a_call(), metadata=self._metadata)
        except TRANSIENT as error:
            raise translated(error, self.address) from error
        except FINAL as error:
            raise translated(error, self.address) from error

    def read(self, method: str, request: Any, deadline: Deadline) -> list[Any]:
        """Make a call that changes nothing, and give its responses; again while it fails and there is time.

        Raises: StoreUnavailable, StoreError.
        """
        return deadline.retry(lambda: self.once(method, request, deadline))

    def listen(self, requests: Iterable[Any]) -> Any:
        """Open a stream of changes; an iterator that can be cancelled. Raises: what its transport raises."""
        return self.client().listen(iter(requests), metadata=self._metadata)

    @property
    def streams(self) -> bool:
        """Whether streams of changes can be had, as far as is known."""
        return self._transport == "grpc" and self._streams_left > 0

    def stream_works(self) -> None:
        """Take note that a stream has brought a message: none will be given up in this process."""
        self._streams_left = math.inf

    def stream_failed(self) -> None:
        """Take note that a stream broke while the server answered other calls."""
        self._streams_left -= 1

    def expect_forks(self) -> None:
        """Keep to REST in this process: a fork beside gRPC's threads may hang the child. Children are free again."""
        self.close()
        self._transport = "rest"

    def close(self) -> None:
        """Let go of the connection of this process; the next call makes a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            _abandoned.append(self._client)  # kept for ever: its destructor is gRPC's code too
            self._client = None
            self._transport, self._streams_left = self._chosen, STREAM_TRIES
        self._lock.release()

    def client(self) -> Client:
        """Give this process's client. Raises: StoreError."""
        with self._lock:
            if self._client is None:
                self._metadata = metadata_of(self.address)
                self._client = self._make_client(self.address, self._transport)
            return self._client


STALE = 60.0
"""Seconds after which an earlier, tighter reading no longer counts: local clocks drift."""

MILLISECOND = 1_000


class ServerClock:
    """Gives the latest time of which it is certain that the server's clock has passed it.

    An answer that carries the server time ``T`` and arrives at ``t`` proves that the server's clock was at least
    ``T`` at ``t``. Between two answers it goes on by the local monotonic clock; it is behind the server by the time
    an answer travels. Thread-safe without a lock, so that a fork finds none held.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._reading: tuple[int, float] | None = None
        self._latest = 0

    @property
    def known(self) -> bool:
        """Whether any answer has come yet."""
        return self._reading is not None

    @property
    def latest(self) -> int:
        """The latest server time seen in an answer."""
        return self._latest

    def learn(self, server: int) -> None:
        """Take note of a server time that has just arrived."""
        at = self._monotonic()
        self._latest = max(self._latest, server)
        offset = server - round(at * 1_000_000)
        reading = self._reading
        if reading is None or offset > reading[0] or at - reading[1] > STALE:
            self._reading = offset, at

    def now(self) -> int:
        """Give the time in microseconds, in whole milliseconds as the server stamps it."""
        reading = self._reading
        assert reading is not None
        certain = max(round(self._monotonic() * 1_000_000) + reading[0], self._latest)
        return certain - certain % MILLISECOND
