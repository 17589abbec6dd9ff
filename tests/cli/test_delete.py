"""``delete-state`` deletes only what was confirmed."""

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


def test_only_the_named_run_is_deleted(run, store, etl):
    result = run(etl, "--yes")
    assert (result.exit_code, result.stdout) == (0, "deleted etl-42\n")
    assert not is_there(store, etl)
    assert run(etl, "--run-token", "r2", "--yes", "--format", "json").stdout == (
        json.dumps({"jobID": etl, "runToken": "r2", "deleted": True}, separators=(",", ":")) + "\n"
    )
    assert not is_there(store, etl, "r2")


def test_without_a_terminal_nothing_is_deleted_without_yes(run, store, etl, error_of):
    result = run(etl)
    assert result.exit_code == 2
    assert error_of(result) == "no terminal to confirm the deletion of job 'etl-42': add --yes"
    assert is_there(store, etl)


def test_an_unknown_job(run, error_of):
    result = run("nope", "--yes")
    assert result.exit_code == 66
    assert error_of(result).startswith("no job 'nope' in this store")


def test_help_lists_the_exit_codes(run):
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
def test_a_user_at_a_terminal_is_asked(kept, asking, answer, code, stays):
    asking.type(answer)
    assert asking.end()[0] == code
    assert is_there(kept, "etl-42") is stays


def test_ctrl_c_at_the_question_deletes_nothing(kept, asking):
    asking.interrupt()
    assert asking.end()[0] == 130
    assert is_there(kept, "etl-42")
