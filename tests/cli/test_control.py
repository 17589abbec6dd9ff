"""``pause-state``, ``resume-state`` and ``cancel-state`` change a job and nothing else."""

import json

import pytest

from celery_statemanager import Manager
from celery_statemanager.testing import Grid


@pytest.fixture
def grid(store):
    return Grid.submitted(store, 2, job_id="etl-42")


def test_a_job_is_paused_and_resumed(command, grid, error_of):
    paused = command("pause-state", "etl-42", "--reason", "deploying")
    assert (paused.exit_code, paused.stdout) == (0, "paused etl-42\n")
    assert (grid.job.flow.paused, grid.job.flow.pause_reason) == (True, "deploying")
    again = command("pause-state", "etl-42")
    assert again.exit_code == 1
    assert error_of(again).startswith("job 'etl-42' was not paused: it has settled, was cancelled or is paused")
    resumed = command("resume-state", "etl-42", "--format", "json")
    assert json.loads(resumed.stdout) == {"jobID": "etl-42", "runToken": None, "resumed": True}
    assert (grid.job.flow.paused, grid.job.flow.pause_reason) == (False, None)
    assert error_of(command("resume-state", "etl-42")) == "job 'etl-42' was not resumed: it is not paused"


def test_a_job_is_cancelled_once(command, grid, error_of):
    assert command("cancel-state", "etl-42", "--reason", "wrong input").stdout == "cancelled etl-42\n"
    assert grid.job.cancelled.reason == "wrong input"
    again = command("cancel-state", "etl-42")
    assert (again.exit_code, grid.job.cancelled.reason) == (1, "wrong input")
    assert error_of(command("pause-state", "etl-42")).startswith("job 'etl-42' was not paused")


def test_a_job_without_messages_cannot_be_paused(command, store):
    Manager.create(store, "by-hand", num_tasks=2, tags=("a",))
    assert command("pause-state", "by-hand").exit_code == 1


@pytest.mark.parametrize("name", ["pause-state", "cancel-state"])
def test_a_reason_that_cannot_be_encoded_is_refused(command, grid, error_of, name):
    result = command(name, "etl-42", "--reason", "\udcff")
    assert result.exit_code == 2
    assert error_of(result).startswith("--reason: ")
    assert not grid.job.flow.paused
    assert grid.job.cancelled is None
