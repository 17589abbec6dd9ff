"""The image of examples/Dockerfile as a worker in a container; skipped without a container engine."""

import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("pytest_celery", reason="pytest-celery is not installed: pip install --group containers")

import docker
from pytest_celery import CeleryBrokerCluster, CeleryWorkerContainer
from pytest_docker_tools import build, container, fxtr

ROOT = Path(__file__).parents[2]
PATIENCE = 120
FOLDER = "/etc"
"""A folder that contains files on this machine and in the image."""

pytestmark = pytest.mark.containers


def engine_error():
    """Return the reason why no container can run, or None."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        return str(error)
    client.close()
    return None


@pytest.fixture(scope="session", autouse=True)
def engine():
    """Skip the tests before an image is built if there is no engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client leaves its socket open if no engine responds
        error = engine_error()
        gc.collect()
    if error is not None:
        pytest.skip(f"no container engine responds: {error}")


image = build(path=str(ROOT), dockerfile="examples/Dockerfile", tag="celery-statemanager-examples:test")

default_worker_container = container(
    image="{image.id}",
    environment=fxtr("worker_environment"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=CeleryWorkerContainer,
    timeout=PATIENCE,
    command=["celery", "-A", "examples", "worker", "--concurrency", "2", "--loglevel", "INFO"],
)


@pytest.fixture
def celery_broker_cluster(celery_redis_broker):
    cluster = CeleryBrokerCluster(celery_redis_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster():
    """Return no result backend, because none is needed."""
    return


def environment(url):
    server = url.rpartition("/")[0]
    return {"BROKER_URL": f"{server}/0", "STATEMANAGER_STORE_URL": f"{server}/1", "EXAMPLES_DIR": "/tmp/audit"}


@pytest.fixture
def worker_environment(celery_redis_broker):
    return environment(celery_redis_broker.config()["url"])


@pytest.fixture
def run(celery_setup):
    """Return a function that runs a command outside the containers and returns its output."""
    variables = {**os.environ, **environment(celery_setup.broker.config()["host_url"])}

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_job_runs_in_a_container_and_is_monitored_from_outside(run):
    run("examples.submit", FOLDER, "--job", "smoke", "--shards", "3")
    run("celery", "-A", "examples", "monitor-state", "--job", "smoke", "--exit-status")
    shown = json.loads(run("celery", "-A", "examples", "show-state", "smoke", "--format", "json"))
    assert (shown["phase"], shown["finished"]) == ("finished", 6)


def test_a_restarted_worker_runs_another_job(run, celery_setup):
    celery_setup.worker.restart()
    run("examples.submit", FOLDER, "--job", "again", "--shards", "3")
    run("celery", "-A", "examples", "monitor-state", "--job", "again", "--exit-status")
