"""``list-state``: which jobs are listed, in which order, at what cost."""

import json
import re
from dataclasses import replace

import pytest

from celery_statemanager import Manager, Status, open_store
from celery_statemanager.cli.rendering.jobs import job_table
from celery_statemanager.cli.rendering.text import PLAIN, plain, width
from celery_statemanager.overview import Wanted, list_overviews, overview
from celery_statemanager.records import Flow, new_job, to_datetime
from celery_statemanager.testing import FakeClock, Grid, WrappedStore

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
    Grid.submitted(store, 2, job_id="paused", flow=Flow(paused=True))
    for name in ("waiting", "running", "failing", "finished", "failed", "cancelled"):
        Manager.create(store, name, num_tasks=2, tags=("a",))
    write("running", (0, "a", 40, None))
    write("failing", (0, "a", -1, "boom"))
    write("finished", *((row, "a", FINISHED, None) for row in (0, 1)))
    write("failed", (0, "a", -1, "boom"), (1, "a", FINISHED, None))
    cancel(store, "cancelled")


def test_the_newest_job_comes_first(store, write, listed):
    for name in ("first", "second", "third"):
        Manager.create(store, name, num_tasks=1, tags=("a",))
    write("first", (0, "a", 5, None))
    assert listed() == ["third", "second", "first"]


def test_the_phase_follows_from_the_cells(phases, run):
    objects = [json.loads(line) for line in run("--format", "json").stdout.splitlines()]
    assert len(objects) == 7
    assert all(each["phase"] == each["jobID"] for each in objects)


@pytest.mark.parametrize("phase", ["waiting", "running", "failing", "paused", "finished", "failed", "cancelled"])
def test_a_status_selects_jobs(phases, listed, phase):
    assert listed("--status", phase) == listed("--phase", phase) == [phase]


def test_statuses_can_be_combined(phases, listed):
    assert sorted(listed("--status", "failed", "--status", "failing")) == ["failed", "failing"]


def test_text_in_the_id_selects_jobs_ignoring_case(phases, listed):
    assert sorted(listed("AIL")) == ["failed", "failing"]


def test_text_in_the_run_token_or_the_metadata_selects_jobs(store, listed, run):
    described = {"token": ("Monday", None), "owner": (None, '{"owner":"Ada"}'), "title": (None, '{"title":"For ADA"}')}
    for name, (token, metadata) in described.items():
        store.create_job(replace(new_job(name, 1, run_token=token), metadata=metadata))
    store.create_job(replace(new_job("other", 1), metadata='{"note":"ada","owner":["ada"],"title":7}'))
    assert listed("monDAY") == ["token"]
    assert sorted(listed("ada")) == ["owner", "title"]
    assert json.loads(run("title", "--format", "json").stdout)["metadata"] == {"title": "For ADA"}


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
    assert [len(each) for each in (list_overviews(store, Wanted(idle_before=now), 2)[0], named(idle_before=now))] == [
        2,
        3,
    ]
    assert list_overviews(store, Wanted(idle_before=now), 2)[1]
    assert named(active_since=now - 250_000_000) == ["new", "middle"]
    assert named(active_since=now - 250_000_000, idle_before=now - 150_000_000) == ["middle"]


def test_ages_are_parsed_from_the_command_line(phases, listed):
    assert listed("--older-than", "1h") == []
    assert len(listed("--newer-than", "1h30m")) == 7


def test_an_invalid_age_is_rejected(run):
    result = run("--older-than", "soon")
    assert result.exit_code == 2
    assert "soon" in result.stderr


def test_a_job_marked_deleted_is_listed_only_with_all(store, phases, run, listed):
    Manager.open(store, "failed").tombstone_job()
    assert "failed" not in listed()
    assert "failed" in listed("--all")
    assert re.search(r"^failed \(hidden\) ", run("--all").stdout, re.MULTILINE)


def test_a_note_says_that_there_are_jobs_beyond_the_limit(phases, run, listed):
    assert listed("--limit", "2") == ["cancelled", "failed"]
    assert run("--limit", "2").stderr == "note: these are the newest 2; --limit 20 may list more\n"
    assert run("--limit", "7").stderr == ""
    assert run("--status", "failed", "--limit", "2").stderr == ""


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

    summaries = records = 0

    def newest_jobs(self, *arguments):
        found = super().newest_jobs(*arguments)
        self.records += len(found)
        return found

    def list_jobs(self, *arguments, **options):
        raise AssertionError("a list does not read all jobs")

    def column_summaries(self, *arguments, **options):
        self.summaries += 1
        assert not options.get("indexes")
        return super().column_summaries(*arguments, **options)

    def list_states(self, *arguments):
        raise AssertionError("a list reads no states")


def test_only_what_is_shown_is_read_and_counted_and_no_states_are_read(store):
    for number in range(250):
        Manager.create(store, f"job-{number}", num_tasks=3, tags=("a",))
    counting = Counting(store)
    found, more = list_overviews(counting, Wanted(), 7)
    assert [each.job.job_id for each in found] == [f"job-{number}" for number in range(249, 242, -1)]
    assert (more, counting.summaries, counting.records) == (True, 7, 8)


def test_a_search_examines_as_many_jobs_as_it_takes(store):
    for number in range(1_250):
        Manager.create(store, f"job-{number}", num_tasks=3, tags=("a",))
    found, more = list_overviews(store, Wanted("job-1"), 1_000)
    expected = [f"job-{number}" for number in range(1_249, -1, -1) if str(number).startswith("1")]
    assert [each.job.job_id for each in found] == expected
    assert not more


def test_a_job_deleted_while_it_is_listed_is_left_out(store):
    for name in ("stays", "goes"):
        Manager.create(store, name, num_tasks=1, tags=("a",))

    class Vanishing(WrappedStore):
        def newest_jobs(self, *arguments):
            page = super().newest_jobs(*arguments)
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
