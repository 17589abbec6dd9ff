"""One round of random trouble per place, whose verdict must be good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ["folders-sqlite", "redis-redis"]
MORE_PLACES = ["rabbitmq-redis", "redis-firestore"]


@pytest.mark.parametrize("name", [*PLACES, *MORE_PLACES])
def test_a_round_ends_well(name, request):
    if name in MORE_PLACES and not request.config.getoption("--full"):
        pytest.skip("with --full")
    command = [sys.executable, "-m", "chaos", "--place", name, "--rounds", "1", "--seed", "test"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=115, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
