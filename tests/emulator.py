"""The real Firestore emulator for tests, on a free port and in its own process group."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import grpc
import pytest
from google.api_core.exceptions import ServiceUnavailable
from google.api_core.retry import Retry, if_exception_type
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.cloud.firestore_v1.types import firestore

from celery_statemanager.testing.ports import free_port

PATIENCE = 60.0
"""Seconds to wait for the emulator to start or stop."""

MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
JAR = Path("platform", "cloud-firestore-emulator", "cloud-firestore-emulator.jar")
INSTALLED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celery-statemanager")
HELP = (
    "the Firestore emulator is not installed: it needs Java (apt-get install default-jre-headless), and "
    "scripts/firestore_emulator_install.sh or `gcloud components install cloud-firestore-emulator`"
)


def skip_or_fail(what: str) -> None:
    """Skip the test, or fail it if ``CI`` is ``true``."""
    end_test = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    end_test(f"{what}: {HELP}")


@cache
def command() -> tuple[str, ...]:
    """Return the command that runs the emulator, from the SDK of ``gcloud`` or from ``firestore_emulator_install.sh``."""
    if shutil.which("java") is None:
        skip_or_fail("no java")
    found = next((jar for jar in _jars() if jar.is_file()), None)
    if found is None:
        skip_or_fail("no jar")
    cheap = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # halves the CPU time of a short run
    java = ("java", "-Duser.language=en", *cheap)
    with ZipFile(str(found)) as jar:
        runs = b"Main-Class:" in jar.read("META-INF/MANIFEST.MF")
    return (*java, "-jar", str(found)) if runs else (*java, "-cp", str(found), MAIN)


def _jars() -> Iterator[Path]:
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        info = [str(gcloud), "info", "--format=value(installation.sdk_root)"]
        root = subprocess.run(info, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
        yield Path(root) / JAR
    yield from sorted(INSTALLED.glob("cloud-firestore-emulator-*.jar"), reverse=True)


class Emulator:
    """One emulator process, restartable on its port. A restart deletes all data."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Emulator:
        options = ("--host", "127.0.0.1", "--port", str(self.port))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command(), *options], stdout=log, stderr=log, start_new_session=True)
        pause, deadline = threading.Event(), time.monotonic() + PATIENCE
        while not self.responds():
            assert self.process.poll() is None, f"the emulator did not start:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"the emulator did not answer:\n{self.log.read_text()}"
            pause.wait(0.05)
        self.warm_up()
        return self

    def warm_up(self) -> None:
        """Make one call of each kind: first calls are slow, and changes during the first listen are lost."""
        with grpc.insecure_channel(self.host) as channel:
            client = FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))
            database = "projects/warm-up/databases/(default)"
            get = firestore.BatchGetDocumentsRequest(database=database, documents=[f"{database}/documents/a/b"])
            patient = Retry(predicate=if_exception_type(ServiceUnavailable), timeout=PATIENCE)
            list(client.batch_get_documents(get, retry=patient, timeout=PATIENCE))
            write = {"update": {"name": f"{database}/documents/a/b"}}
            client.commit(firestore.CommitRequest(database=database, writes=[write]), retry=None, timeout=PATIENCE)
            self._listen_once(client, database)

    @staticmethod
    def _listen_once(client: FirestoreClient, database: str) -> None:
        """Listen to a collection until its documents have arrived."""
        query = {"from_": [{"collection_id": "a"}]}
        target = {"query": {"parent": f"{database}/documents", "structured_query": query}, "target_id": 1}
        requests: queue.SimpleQueue[firestore.ListenRequest | None] = queue.SimpleQueue()
        requests.put(firestore.ListenRequest(database=database, add_target=target))
        responses = client.listen(iter(requests.get, None), retry=None, timeout=PATIENCE)
        while next(responses).target_change.target_change_type != firestore.TargetChange.TargetChangeType.CURRENT:
            pass
        requests.put(None)
        responses.cancel()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            self.process.wait(PATIENCE)
            self.process = None

    def responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}/", timeout=1) as answer:
                return answer.read().strip() == b"Ok"
        except OSError:
            return False


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Emulator]:
    """Run an emulator and yield it."""
    emulator = Emulator(directory / "emulator.log")
    try:
        yield emulator.start()
    finally:
        emulator.stop()
