"""``list-state``: which jobs are listed, in which order, at what cost."""

import json
import re
from dataclasses import replace

import pytest

from celery_statemanager import Manager, Status, open_store
from celery_statemanager.cli.rendering.jobs import job_table
from celery_statemanager.cli.rendering.text import PLAIN, plain, width
from celery_statemanager.overview import Wanted, list_overviews, overview
from celery_statemanager.records import new_job, to_datetime
from celery_statemanager.testing import FakeClock, WrappedStore

FINISHED = int(Status.FINISHED)


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("list-state", *arguments)

    return run


@pytest.fixture
def listed(run):
    """Give the ids that the command lists."""

    def listed(*arguments):
        result = run(*arguments, "--format", "json")
        assert result.exit_code == 0, result.stderr
        return [json.loads(line)["jobID"] for line in result.stdout.splitlines()]

    return listed


@pytest.fixture
def phases(store, write, cancel):
    """One job in each phase, named for it."""
    for name in ("waiting", "running", "failing", "finished", "failed", "cancelled"):
        Manager.create(store, name, num_tasks=2, tags=("a",))
    write("running", (0, "a", 40, None))
    write("failing", (0, "a", -1, "boom"))
    write("finished", *((row, "a", FINISHED, None) for row in (0, 1)))
    write("failed", (0, "a", -1, "boom"), (1, "a", FINISHED, None))
    cancel(store, "cancelled")


def test_the_most_recently_written_job_comes_first(store, write, listed):
    for name in ("first", "second", "third"):
        Manager.create(store, name, num_tasks=1, tags=("a",))
    write("first", (0, "a", 5, None))
    assert listed() == ["first", "third", "second"]


def test_the_phase_follows_from_the_cells(phases, run):
    objects = [json.loads(line) for line in run("--format", "json").stdout.splitlines()]
    assert len(objects) == 6
    assert all(each["phase"] == each["jobID"] for each in objects)


@pytest.mark.parametrize("phase", ["waiting", "running", "failing", "finished", "failed", "cancelled"])
def test_a_status_selects_jobs(phases, listed, phase):
    assert listed("--status", phase) == [phase]


def test_statuses_can_be_combined(phases, listed):
    assert sorted(listed("--status", "failed", "--status", "failing")) == ["failed", "failing"]


def test_text_in_the_id_selects_jobs_ignoring_case(phases, listed):
    assert sorted(listed("AIL")) == ["failed", "failing"]


def test_a_job_without_a_plan_is_over_when_all_its_cells_have_ended(store, write, run):
    Manager.create(store, "job", num_tasks=1)
    assert "waiting" in run().stdout
    write("job", (0, "a", FINISHED, None))
    assert "finished" in run().stdout


def test_ages_select_jobs_by_their_last_write():
    clock = FakeClock()
    store = open_store("memory://", clock=clock)
    for name in ("old", "middle", "new"):
        Manager.create(store, name, num_tasks=1)
        clock.advance(100)
    now = store.now()

    def named(**wanted):
        return [each.job.job_id for each in list_overviews(store, Wanted(**wanted), 10)[0]]

    assert named(idle_before=now - 150_000_000) == ["middle", "old"]
    assert named(active_since=now - 250_000_000) == ["new", "middle"]
    assert named(active_since=now - 250_000_000, idle_before=now - 150_000_000) == ["middle"]


def test_ages_are_parsed_from_the_command_line(phases, listed):
    assert listed("--older-than", "1h") == []
    assert len(listed("--newer-than", "1h30m")) == 6


def test_an_invalid_age_is_rejected(run):
    result = run("--older-than", "soon")
    assert result.exit_code == 2
    assert "soon" in result.stderr


def test_a_job_marked_deleted_is_listed_only_with_all(store, phases, run, listed):
    Manager.open(store, "failed").tombstone_job()
    assert "failed" not in listed()
    assert "failed" in listed("--all")
    assert re.search(r"^failed \(hidden\) ", run("--all").stdout, re.MULTILINE)


def test_jobs_beyond_the_limit_are_counted(phases, run, listed):
    assert len(listed("--limit", "2")) == 2
    assert run("--limit", "2").stderr == "note: 2 of 6 jobs; --limit 6 lists them all\n"


def test_no_matching_jobs_are_not_an_error(run):
    result = run("nothing like it")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no matching jobs\n")
    assert run("nothing like it", "--format", "json").stdout == ""


def test_a_store_with_only_hidden_jobs_is_reported(store, run):
    Manager.create(store, "old", num_tasks=1).tombstone_job()
    assert run().stderr.startswith("only hidden jobs: --all lists them")


def test_a_store_without_jobs_is_reported(run, tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    with open_store(url) as store:
        store.list_jobs()
    assert run("--store", url).stderr == "no jobs yet\n"
    assert run("--store", "memory://").stderr == "no jobs yet; a memory store is visible only in its own process\n"


class Counting(WrappedStore):
    """Counts the column summaries and fails if states are read."""

    summaries = 0

    def column_summaries(self, *arguments, **options):
        self.summaries += 1
        assert not options.get("indexes")
        return super().column_summaries(*arguments, **options)

    def list_states(self, *arguments):
        raise AssertionError("a list reads no states")


def test_only_what_is_shown_is_counted_and_no_states_are_read(store):
    for number in range(250):
        Manager.create(store, f"job-{number}", num_tasks=3, tags=("a",))
    counting = Counting(store)
    found, total = list_overviews(counting, Wanted(), 7)
    assert [each.job.job_id for each in found] == [f"job-{number}" for number in range(249, 242, -1)]
    assert (total, counting.summaries) == (250, 7)


def test_a_job_deleted_while_it_is_listed_is_left_out(store):
    for name in ("stays", "goes"):
        Manager.create(store, name, num_tasks=1, tags=("a",))

    class Vanishing(WrappedStore):
        def list_jobs(self, *arguments, **options):
            page = super().list_jobs(*arguments, **options)
            Manager.open(store, "goes").delete_job()
            return page

    assert [each.job.job_id for each in list_overviews(Vanishing(store), Wanted(), 9)[0]] == ["stays"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_keeps_to_its_width_and_shows_every_number(store, columns):
    names = ["etl-42", "日本語" * 30, "x\x1b[2J" * 40]
    for name in names:
        store.create_job(replace(new_job("x", 10_000_000, ("a", "b")), job_id=name, run_token="2026-11-24"))
    listed = [overview(store, job.ref) for job in store.list_jobs().jobs]
    lines = [plain(line) for line in job_table(listed, to_datetime(store.now()), columns, PLAIN)]
    assert max(map(width, lines)) <= columns
    assert all("0/20,000,000" in line and "waiting" in line for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_a_terminal_sees_colours(kept, terminal):
    Manager.create(kept, "etl-42", num_tasks=1, tags=("a",), task_index=0).set_state("a", FINISHED)
    code, left = terminal(command="list-state").end()
    assert code == 0
    assert re.search(r"etl-42\s+\x1b\[32mfinished", left)
