"""``monitor-state`` without a terminal, run in this process."""

import json
import re

import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner

from celery_statemanager import Manager, Status
from celery_statemanager.cli import common, outputs
from celery_statemanager.cli.rendering.lines import Output

FIELDS = {"jobID", "tag", "taskID", "version", "status", "message", "timestamp", "eventID", "replay"}


@pytest.fixture
def run(app, command):
    """Run ``monitor-state``; give its result."""

    def run(*arguments, app=app):
        return command("monitor-state", *arguments, app=app)

    return run


@pytest.fixture
def settled(store, write):
    """A settled job with a failure."""
    Manager.create(store, "etl-42", num_tasks=3, tags=("ingest",))
    write("etl-42", (0, "ingest", 40, "page 4"), (0, "ingest", Status.FINISHED, "done"))
    write("etl-42", (1, "ingest", -5, "too slow"), (2, "ingest", Status.FINISHED, "größer ☃"))
    return "etl-42"


def test_celery_lists_the_command():
    result = CliRunner().invoke(celery_command, ["--help"])
    assert "monitor-state  Watch a job's tasks live." in result.stdout


def test_help_is_grouped_and_has_examples(run):
    text = run("--help").stdout
    for part in ("Which job:", "How to watch:", "Store:", "Examples:", "Exit status:", "celery -A proj monitor-state"):
        assert part in text


def test_json_is_the_default_without_a_terminal(run, settled):
    result = run("--job", settled)
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert all(each.keys() >= FIELDS for each in objects)
    assert [(each["taskID"], each["version"], each["status"]) for each in objects] == [
        (0, 2, 2**31 - 1),
        (1, 1, -5),
        (2, 1, 2**31 - 1),
    ]
    assert objects[0]["jobID"] == "etl-42"
    assert objects[0]["replay"] is True
    assert objects[2]["message"] == "größer ☃"


def test_the_table_has_aligned_columns_and_a_summary(run, settled):
    lines = run("--job", settled, "--format", "table").stdout.splitlines()
    assert re.fullmatch(r"TIME +TASK  TAG     STATUS       MESSAGE", lines[0])
    assert re.fullmatch(r"(..-.. )?..:..:..     1  ingest  TIMED_OUT    too slow", lines[2])
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "2 of 3 finished · 1 failed" in text
    assert re.search(r"× +TIMED_OUT  1  too slow|✗ TIMED_OUT  1  too slow", text)


def test_tag_and_task_select_cells(run, store, write):
    Manager.create(store, "job", num_tasks=2, tags=("a", "b"))
    write("job", *((index, tag, Status.FINISHED, None) for index in (0, 1) for tag in ("a", "b")))

    def selected(*arguments):
        found = (json.loads(line) for line in run("--job", "job", *arguments).stdout.splitlines())
        return [(each["tag"], each["taskID"]) for each in found]

    assert selected("--tag", "a") == [("a", 0), ("a", 1)]
    assert selected("--task", "1") == [("a", 1), ("b", 1)]
    assert selected("--tag", "b", "--task", "0") == [("b", 0)]


def test_the_run_token_selects_the_run(run, store, settled):
    Manager.create(store, settled, num_tasks=1, tags=("x",), run_token="r2", task_index=0).set_state(
        "x", Status.FINISHED
    )
    objects = [json.loads(line) for line in run("--job", settled, "--run-token", "r2").stdout.splitlines()]
    assert [each["tag"] for each in objects] == ["x"]


def test_no_follow_shows_the_current_states_and_exits(run, store, write):
    Manager.create(store, "job", num_tasks=2, tags=("a",))
    write("job", (0, "a", 40, None))
    result = run("--job", "job", "--no-follow")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(("status", "code"), [(-5, 1), (Status.FINISHED, 0)])
def test_exit_status_reports_failures_only_on_request(run, store, write, status, code):
    Manager.create(store, "job", num_tasks=1, tags=("a",))
    write("job", (0, "a", status, None))
    assert run("--job", "job").exit_code == 0
    assert run("--job", "job", "--exit-status").exit_code == code


def test_exit_status_reports_a_cancelled_job(run, store, cancel):
    Manager.create(store, "job", num_tasks=2, tags=("a",))
    cancel(store, "job")
    result = run("--job", "job", "--exit-status", "--format", "table")
    assert result.exit_code == 1
    assert re.search(r"CANCELLED  0-1  user asked", result.stdout)


def test_a_tombstoned_job_is_marked_deleted(run, store, settled):
    Manager.open(store, settled).tombstone_job()
    assert "marked deleted" in run("--job", settled, "--format", "table").stdout


def test_an_unknown_job(run, url, error_of):
    result = run("--job", "nope")
    assert result.exit_code == 66
    assert error_of(result).startswith("no job 'nope' in this store")
    assert url in result.stderr


def test_an_unknown_run(run, settled, error_of):
    result = run("--job", settled, "--run-token", "other")
    assert result.exit_code == 66
    assert "run token 'other'" in error_of(result)
    assert result.stderr.endswith("; there is one without --run-token\n")


def test_an_unknown_job_suggests_similar_runs_and_names(run, store, error_of):
    for token in ("monday", "the 2nd"):
        Manager.create(store, "report", num_tasks=1, run_token=token)
    told = error_of(run("--job", "report"))
    assert told.endswith(("; there is --run-token monday or --run-token 'the 2nd'", "'the 2nd' or --run-token monday"))
    assert error_of(run("--job", "raport")).endswith("; did you mean 'report'?")


@pytest.mark.parametrize("task", ["-1", "3"])
def test_a_task_out_of_range(run, settled, task, error_of):
    result = run("--job", settled, "--task", task)
    assert result.exit_code == 2
    assert error_of(result) == f"--task is 0 … 2 for job 'etl-42', not {task}"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--job", ""], "JOB must have 1 to 200 characters"),
        (["--job", "a\nb"], "JOB must not contain the character"),
        (["--job", "etl-42", "--run-token", "x" * 201], "--run-token must have 1 to 200 characters"),
        (["--job", "etl-42", "--tag", ""], "--tag must have 1 to 200 characters"),
    ],
)
def test_invalid_names_are_rejected(run, settled, arguments, start, error_of):
    result = run(*arguments)
    assert result.exit_code == 2
    assert error_of(result).startswith(start)


def test_a_job_must_be_named(run, error_of):
    result = run()
    assert result.exit_code == 2
    assert error_of(result).startswith("no job: write monitor-state JOB; list-state lists the jobs")


@pytest.mark.parametrize("words", [["etl-42"], ["etl-42", "--job", "etl-42"], ["--job", "etl-42"]])
def test_the_job_is_an_argument_or_an_option(run, settled, words):
    result = run(*words)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)


def test_two_different_jobs_are_rejected(run, settled, error_of):
    result = run(settled, "--job", "other")
    assert result.exit_code == 2
    assert error_of(result) == "two different jobs: JOB is 'etl-42' and --job is 'other'; use one of them"


def test_a_mistyped_tag_is_reported(run, settled):
    result = run("--job", settled, "--tag", "ingset")
    assert result.exit_code == 0
    assert "did you mean 'ingest'?" in result.stderr


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ("nonsense", "'nonsense' is not the URL of a store"),
        ("reddis://u:hunter2@host/0", "no store for scheme 'reddis'"),
        ("sqlite:////no/such/folder/states.db", "/no/such/folder"),
    ],
)
def test_a_bad_store_url(run, bad, text, error_of):
    result = run("--job", "job", "--store", bad)
    assert result.exit_code == 78
    assert text in error_of(result)
    assert "hunter2" not in result.stderr


def test_a_bad_setting(run, app, error_of):
    app.conf.statemanager_store_timeout = -1
    result = run("--job", "job")
    assert result.exit_code == 78
    assert "statemanager_store_timeout" in error_of(result)


def test_an_unreachable_store(run, monkeypatch, store, error_of):
    def unreachable(key):
        raise common.StoreError("cannot reach the store:\nno route")

    monkeypatch.setattr(store, "get_job", unreachable)
    result = run("--job", "job")
    assert result.exit_code == 69
    assert error_of(result).startswith("cannot reach the store: no route (memory://")


def test_a_subscription_that_cannot_reconnect(run, monkeypatch, store, settled, error_of):
    def refused(*_):
        raise common.SubscriptionLost(settled, "password changed")

    monkeypatch.setattr(store, "watch", refused)
    result = run("--job", settled)
    assert result.exit_code == 69
    assert "password changed" in error_of(result)


def test_a_memory_store_of_another_process(run, error_of):
    result = run("--job", "job", "--store", "memory://")
    assert result.exit_code == 66
    assert "visible only in its own process" in error_of(result)


def test_an_app_with_a_state_manager_uses_its_store(run, app, settled):
    from celery_statemanager import StateManager

    StateManager(app)
    assert run("--job", settled).exit_code == 0


def test_without_an_app_there_is_no_store(run, monkeypatch, settled, url, error_of):
    default = Celery("default", set_as_current=False)
    monkeypatch.setattr(common._state, "default_app", default)
    result = run("--job", settled, app=default)
    assert result.exit_code == 2
    assert error_of(result) == "no app and no store: write celery -A proj …, or name a store with --store URL"
    assert run("--job", settled, "--store", url, app=default).exit_code == 0


def test_live_needs_a_terminal(run, settled, error_of):
    result = run("--job", settled, "--format", "live")
    assert result.exit_code == 2
    assert error_of(result) == "the live display needs a terminal that can move its cursor: use --format table"


def test_live_needs_rich(run, monkeypatch, settled, error_of):
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    result = run("--job", settled, "--format", "live")
    assert result.exit_code == 78
    hint = 'pip install "celery-statemanager[monitor]"; in a checkout, pip install ".[monitor]"'
    assert error_of(result) == f"the live display needs rich: {hint}"


@pytest.mark.parametrize(("rich", "hint"), [(False, "celery-statemanager[monitor]"), (True, "showing a table")])
def test_a_terminal_without_a_live_display_gets_a_table_and_a_hint(monkeypatch, capsys, rich, hint):
    if not rich:
        monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    output = Output()
    output.terminal = True
    assert outputs.choose(None, output) is outputs.show_table
    assert hint in capsys.readouterr().err


def test_a_job_deleted_while_it_is_opened_exits_with_66(run, store, monkeypatch):
    job = Manager.create(store, "job", num_tasks=1, tags=("a",))
    original = store.watch

    def deleted_then(*args):
        watch = original(*args)
        job.delete_job()
        return watch

    monkeypatch.setattr(store, "watch", deleted_then)
    result = run("--job", "job")
    assert result.exit_code == 66


READING = [("monitor-state", "--job", "job"), ("list-state",), ("show-state", "job"), ("why-state", "job")]


@pytest.mark.parametrize("words", [*READING, ("delete-state", "job", "--yes")], ids=lambda words: words[0])
def test_a_missing_file_is_reported_and_not_created(command, tmp_path, error_of, words):
    path = tmp_path / "mistyped.db"
    result = command(*words, "--store", f"sqlite:///{path}")
    assert result.exit_code == 78
    assert error_of(result).startswith(f"there is no file {path}, so no state was stored there")
    assert not path.exists()


def test_a_sweep_in_the_wrong_directory_is_reported(command, app, tmp_path, error_of):
    app.conf.statemanager_store_url = f"sqlite:///{tmp_path}/states.db"
    result = command("sweep-state")
    assert result.exit_code == 78
    assert "there is no file" in error_of(result)
    assert list(tmp_path.iterdir()) == []
