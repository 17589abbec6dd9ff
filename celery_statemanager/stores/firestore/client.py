"""Connections to Firestore: made on first use, one per process, and calls with an end.

The generated client is used bare: no retries of its own, for they last minutes and repeat what must not be repeated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.auth import default as default_credentials
from google.auth import exceptions as auth_errors
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.address import Address, emulator
from celery_statemanager.stores.firestore.clock import ServerClock
from celery_statemanager.stores.firestore.deadline import Deadline
from celery_statemanager.stores.firestore.trouble import FINAL, TRANSIENT, translated
from celery_statemanager.stores.forking import fork_aware

ClientFactory = Callable[[Address], FirestoreClient]
"""Makes a client in the process that will use it. Another transport is another factory."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_SCOPES = ("https://www.googleapis.com/auth/datastore",)
_abandoned: list[object] = []


def grpc_channel(address: Address) -> grpc.Channel:
    """Open a channel to the emulator, if the environment names one, else to the service. Raises: StoreError."""
    host = emulator()
    if host is not None:
        return grpc.insecure_channel(host, options=_OPTIONS)
    try:
        credentials, _ = default_credentials(scopes=_SCOPES)
    except auth_errors.DefaultCredentialsError as error:
        raise StoreError(
            f"no credentials for {address}: run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or set FIRESTORE_EMULATOR_HOST to use an emulator"
        ) from error
    channel: grpc.Channel = FirestoreGrpcTransport.create_channel(credentials=credentials, options=_OPTIONS)
    return channel


def grpc_client(address: Address) -> FirestoreClient:
    """Make a client over gRPC. Raises: StoreError."""
    return FirestoreClient(transport=FirestoreGrpcTransport(channel=grpc_channel(address)))


class Connection:
    """Calls of one store. Thread-safe; a forked child makes a client of its own.

    What a child inherits is neither used nor closed there: either may hang in gRPC.
    """

    def __init__(self, address: Address, timeout: float, make_client: ClientFactory) -> None:
        self.address = address
        self.timeout = timeout
        self.clock = ServerClock()
        self._make_client = make_client
        self._lock = threading.Lock()
        self._client: FirestoreClient | None = None
        self._pid = os.getpid()
        self._metadata = (("google-cloud-resource-prefix", address.database_path),)
        fork_aware(self)

    def deadline(self) -> Deadline:
        """Give the time that one call of the store may take."""
        return Deadline(self.timeout)

    def once(self, method: str, request: Any, deadline: Deadline) -> Any:
        """Make one call. Raises: StoreError; Transient – it may or may not have been done."""
        try:
            return getattr(self.client(), method)(
                request, retry=None, timeout=deadline.for_a_call(), metadata=self._metadata
            )
        except TRANSIENT as error:
            raise translated(error, self.address) from error
        except FINAL as error:
            raise translated(error, self.address) from error

    def read(self, method: str, request: Any, deadline: Deadline) -> list[Any]:
        """Make a call that changes nothing, and read its stream; again while it fails and there is time.

        Raises: StoreUnavailable, StoreError.
        """
        return deadline.insist(lambda: self._read(method, request, deadline))

    def listen(self, requests: Iterable[Any]) -> Any:
        """Open a stream of changes; an iterator that can be cancelled. Raises: what its transport raises."""
        return self.client().listen(iter(requests), retry=None, timeout=None, metadata=self._metadata)

    def close(self) -> None:
        """Let go of the connection of this process; the next call makes a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.transport.close()  # type: ignore[no-untyped-call]

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            _abandoned.append(self._client)  # kept for ever: its destructor is gRPC's code too
            self._client = None
        self._lock.release()

    def client(self) -> FirestoreClient:
        """Give this process's client. Raises: StoreError."""
        with self._lock:
            if self._client is None:
                self._client = self._make_client(self.address)
            return self._client

    def _read(self, method: str, request: Any, deadline: Deadline) -> list[Any]:
        stream = self.once(method, request, deadline)
        try:
            return [type(response).pb(response) for response in stream]
        except TRANSIENT as error:
            raise translated(error, self.address) from error
        except FINAL as error:
            raise translated(error, self.address) from error
