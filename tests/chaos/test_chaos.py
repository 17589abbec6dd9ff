"""One round of random faults per place must pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {"folders-sqlite": 309, "redis-redis": 571}
"""Short rounds that kill a worker and pause one, or cut the connections to broker and store."""

MORE_PLACES = {
    "rabbitmq-redis": 571,
    "redis-postgres": 571,
    "redis-cluster": 262,
    "redis-firestore": 571,
}
"""The round of the cluster moves slots, kills a worker and kills a master."""


@pytest.mark.parametrize(("name", "number"), {**PLACES, **MORE_PLACES}.items())
def test_a_round_passes(name, number, request):
    if name in MORE_PLACES and not request.config.getoption("--full"):
        pytest.skip("runs with --full only")
    command = [sys.executable, "-m", "chaos", "--place", name, "--seed", "test"]
    command += ["--first", str(number), "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=115, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
