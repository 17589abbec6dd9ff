"""A real RabbitMQ server for tests: its own ports, node, directories and Erlang port mapper, stopped with all of it."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_statemanager.testing.ports import free_port

PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"
PATIENCE = 60


@contextmanager
def running_rabbitmq() -> Iterator[str]:
    """Run a server and give its URL; without one installed skip, or fail where CI says that all must be there."""
    if shutil.which("epmd") is None or not Path(PROGRAM).exists():
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain("RabbitMQ is not installed: apt-get install rabbitmq-server")
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True) as directory:
        port, environment = _environment(Path(directory))
        server = subprocess.Popen(
            [PROGRAM],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said: list[str] = []
        started = threading.Event()
        threading.Thread(target=_listen, args=(server, said, started), daemon=True).start()
        try:
            if not started.wait(PATIENCE) or server.poll() is not None:
                raise RuntimeError("RabbitMQ did not start:\n" + "".join(said))
            yield f"amqp://guest:guest@127.0.0.1:{port}//"
        finally:
            server.terminate()
            server.wait(PATIENCE)
            subprocess.run(["epmd", "-kill"], env=environment, capture_output=True, check=False)


def _listen(server: "subprocess.Popen[str]", said: list[str], started: threading.Event) -> None:
    assert server.stdout is not None
    with server.stdout as output:
        for line in output:
            said.append(line)
            if "completed with" in line:
                started.set()
    started.set()


def _environment(home: Path) -> tuple[int, dict[str, str]]:
    port, distribution, mapper = (free_port() for _ in range(3))
    return port, {
        **os.environ,
        "HOME": str(home),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
        "RABBITMQ_SERVER_START_ARGS": "-setcookie test",
    }
