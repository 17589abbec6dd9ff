"""A worker or beat with an unusable store reports the reason and does not start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = """
from celery import Celery
from celery_statemanager import StateManager

app = Celery("shop", broker="memory://")
app.conf.statemanager_store_url = "sqlite:///nowhere/states.db"
states = StateManager(app)
"""


@pytest.mark.parametrize("program", [("worker", "-P", "solo"), ("beat",)])
def test_a_program_with_an_unusable_store_does_not_start(tmp_path, program):
    (tmp_path / "shop.py").write_text(SHOP)
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", *program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "there is no directory" in ended.stderr.splitlines()[-1]
