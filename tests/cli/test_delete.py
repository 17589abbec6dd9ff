"""``delete-state``: nothing is deleted that nobody agreed to."""

import json

import pytest

from celery_statemanager import JobNotFound, Manager, Status


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("delete-state", *arguments)

    return run


@pytest.fixture
def etl(store, write):
    Manager.create(store, "etl-42", num_tasks=2, tags=("a",))
    Manager.create(store, "etl-42", num_tasks=2, tags=("a",), run_token="r2")
    write("etl-42", (0, "a", Status.FINISHED, None))
    return "etl-42"


def is_there(store, job_id, run_token=None):
    try:
        Manager.open(store, job_id, run_token=run_token)
    except JobNotFound:
        return False
    return True


def test_it_deletes_the_run_that_was_named_and_no_other(run, store, etl):
    result = run(etl, "--yes")
    assert (result.exit_code, result.stdout) == (0, "deleted etl-42\n")
    assert not is_there(store, etl)
    assert run(etl, "--run-token", "r2", "--yes", "--format", "json").stdout == (
        json.dumps({"jobID": etl, "runToken": "r2", "deleted": True}, separators=(",", ":")) + "\n"
    )
    assert not is_there(store, etl, "r2")


def test_without_a_terminal_it_deletes_nothing_unless_told_to(run, store, etl, error_of):
    result = run(etl)
    assert result.exit_code == 2
    assert error_of(result) == "nobody to ask whether to delete job 'etl-42': say --yes"
    assert is_there(store, etl)


def test_an_unknown_job(run, error_of):
    result = run("nope", "--yes")
    assert result.exit_code == 66
    assert error_of(result).startswith("no job 'nope' in this store")


def test_help_tells_every_exit_code(run):
    text = run("--help").stdout
    assert "1  not deleted: the answer was no" in text


@pytest.fixture
def asking(kept, terminal):
    """The command on a terminal, at its question."""
    Manager.create(kept, "etl-42", num_tasks=2, tags=("a",), task_index=0).set_state("a", 40)
    asking = terminal("etl-42", command="delete-state")
    asking.wait_for(r"etl-42: running, 1 state, last written (\d+s ago|now)\r")
    asking.wait_for(r"Delete it and all its states\? \[y/N\]: ")
    return asking


@pytest.mark.parametrize(("answer", "code", "stays"), [("y\n", 0, False), ("n\n", 1, True)])
def test_a_terminal_is_asked(kept, asking, answer, code, stays):
    asking.type(answer)
    assert asking.end()[0] == code
    assert is_there(kept, "etl-42") is stays


def test_ctrl_c_at_the_question_deletes_nothing(kept, asking):
    asking.interrupt()
    assert asking.end()[0] == 130
    assert is_there(kept, "etl-42")
