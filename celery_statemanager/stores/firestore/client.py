"""The connection of a store to Firestore, and an estimate of the server's clock.

Only reads are repeated here. The client library's own retries last for minutes and repeat writes too.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery_statemanager.greenlets import has_green_sockets
from celery_statemanager.stores.firestore.address import FirestoreAddress
from celery_statemanager.stores.firestore.errors import CLIENT_ERRORS, CallDeadline, translated
from celery_statemanager.stores.firestore.transports import Client, ClientFactory, Metadata, Transport, metadata_of
from celery_statemanager.stores.forking import fork_aware

STREAM_TRIES = 4
"""Streams that may fail before a process that has never read one stops opening them."""

MAX_READING_AGE = 60.0
"""Seconds after which a new clock reading replaces an earlier, tighter one, because local clocks drift."""

MILLISECOND = 1_000

_abandoned: list[object] = []


class Connection:
    """Makes the calls of one store. Thread-safe; a forked child creates its own client.

    A child neither uses nor closes an inherited client, because both may hang in gRPC.
    """

    def __init__(
        self, address: FirestoreAddress, timeout: float, transport: Transport, make_client: ClientFactory
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.clock = ServerClock()
        self._configured_transport = self._transport = transport
        self._make_client = make_client
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._streams_left: float = STREAM_TRIES
        self._pid = os.getpid()
        self._metadata: Metadata = ()
        fork_aware(self)

    def deadline(self) -> CallDeadline:
        """Return a new deadline for one call of the store."""
        return CallDeadline(self.timeout)

    def once(self, method: str, request: Any, deadline: CallDeadline) -> Any:
        """Make one call without retries. Raises: StoreError; Transient – the call may or may not have been applied."""
        try:
            return getattr(self.client(), method)(request, timeout=deadline.for_a_call(), metadata=self._metadata)
        except CLIENT_ERRORS as error:
            raise translated(error, self.address) from error

    def read(self, method: str, request: Any, deadline: CallDeadline) -> list[Any]:
        """Make a read-only call with retries, and return its responses.

        Raises: StoreUnavailable, StoreError.
        """
        return deadline.retry(lambda: self.once(method, request, deadline))

    def listen(self, requests: Iterable[Any]) -> Any:
        """Open a stream of changes and return a cancellable iterator. Raises: the errors of the transport."""
        return self.client().listen(iter(requests), metadata=self._metadata)

    @property
    def streams(self) -> bool:
        """Whether this process may open streams of changes."""
        return self._usable_transport() == "grpc" and self._streams_left > 0

    def stream_works(self) -> None:
        """Record that a stream delivered a message. Later failures do not disable streams in this process."""
        self._streams_left = math.inf

    def stream_failed(self) -> None:
        """Record that a stream broke while the server answered other calls."""
        self._streams_left -= 1

    def expect_forks(self) -> None:
        """Use REST in this process, because a fork while gRPC's threads run may hang the child.

        Children use the configured transport.
        """
        self.close()
        self._transport = "rest"

    def close(self) -> None:
        """Close this process's client; the next call creates another one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            _abandoned.append(self._client)  # referenced forever, because its destructor runs gRPC code
            self._client = None
            self._transport, self._streams_left = self._configured_transport, STREAM_TRIES
        self._lock.release()

    def client(self) -> Client:
        """Return this process's client; the first call creates it. Raises: StoreError."""
        with self._lock:
            if self._client is None:
                self._metadata = metadata_of(self.address)
                self._client = self._make_client(self.address, self._usable_transport())
            return self._client

    def _usable_transport(self) -> Transport:
        """Return REST in a process of greenlets, because a call of gRPC blocks all of them and does not end."""
        return "rest" if has_green_sockets() else self._transport


class ServerClock:
    """Computes the latest time that the server's clock has certainly passed.

    An answer that carries the server time ``T`` and arrives at ``t`` proves that the server's clock was at least
    ``T`` at ``t``. Between two answers the estimate advances with the local monotonic clock. It is behind the server
    by the time that an answer takes to arrive. Thread-safe without a lock, so that a fork copies no held lock.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._reading: tuple[int, float] | None = None
        self._latest = 0

    @property
    def known(self) -> bool:
        """Whether an answer has arrived."""
        return self._reading is not None

    def learn(self, server: int) -> None:
        """Record a server time that has just arrived."""
        at = self._monotonic()
        self._latest = max(self._latest, server)
        offset = server - round(at * 1_000_000)
        reading = self._reading
        if reading is None or offset > reading[0] or at - reading[1] > MAX_READING_AGE:
            self._reading = offset, at

    def now(self) -> int:
        """Return the time in microseconds, in whole milliseconds as in the server's own timestamps."""
        reading = self._reading
        assert reading is not None
        certain = max(round(self._monotonic() * 1_000_000) + reading[0], self._latest)
        return certain - certain % MILLISECOND
