"""Ways to reach Firestore: gRPC, which streams changes, and REST, which a process may use while it forks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import grpc
from google.auth import default as default_credentials
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.address import Address, emulator
from celery_statemanager.stores.firestore.rest import SERVICE, RestClient
from celery_statemanager.stores.firestore.rpc import GrpcClient, Metadata

Transport = Literal["grpc", "rest"]
Client = GrpcClient | RestClient
ClientFactory = Callable[[Address, Transport], Client]
"""Makes a client in the process that will use it."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_LONGEST_ASKED = 3.0
"""Seconds; with the library's pauses between its tries some 6."""
_SCOPES = ("https://www.googleapis.com/auth/datastore",)


def make_client(address: Address, transport: Transport) -> Client:
    """Make a client of the emulator, if the environment names one, else of the service. Raises: StoreError."""
    if transport == "rest":
        return rest_client(address)
    return GrpcClient(grpc_channel(address))


def metadata_of(address: Address) -> Metadata:
    """Give what each call carries: its database and, for an emulator, that a server asks, who needs obey no rules."""
    database = ("google-cloud-resource-prefix", address.database_path)
    return (database, ("authorization", "Bearer owner")) if emulator() else (database,)


def grpc_channel(address: Address) -> grpc.Channel:
    """Open a channel. Raises: StoreError."""
    host = emulator()
    if host is not None:
        return grpc.insecure_channel(host, options=_OPTIONS)
    channel: grpc.Channel = FirestoreGrpcTransport.create_channel(credentials=_credentials(address), options=_OPTIONS)
    return channel


def rest_client(address: Address) -> RestClient:
    """Make a client over HTTP. Raises: StoreError."""
    host = emulator()
    credentials = _credentials(address) if host is None else AnonymousCredentials()  # type: ignore[no-untyped-call]
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return RestClient(session, SERVICE if host is None else f"http://{host}")


def _credentials(address: Address) -> Any:
    try:
        return default_credentials(scopes=_SCOPES, request=_Hurried())[0]
    except auth_errors.DefaultCredentialsError as error:
        said = str(error).partition(". ")[0]
        raise StoreError(
            f"no credentials for {address} ({said}): run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or set FIRESTORE_EMULATOR_HOST to use an emulator"
        ) from error


class _Hurried(Request):
    """Asks a machine's metadata server for credentials, and where nothing answers, not for the 12 s of the library."""

    def __init__(self) -> None:
        super().__init__()
        self._end = time.monotonic() + _LONGEST_ASKED

    def __call__(self, *args: Any, **options: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise auth_errors.TransportError("no metadata server answers")  # type: ignore[no-untyped-call]
        options["timeout"] = min(options.get("timeout") or left, left)
        return super().__call__(*args, **options)  # type: ignore[no-untyped-call]
