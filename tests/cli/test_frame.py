"""The display fits terminals of all sizes and shows the most important facts first."""

import io
import re
from datetime import datetime, timedelta, timezone

import pytest
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from celery_statemanager import Status
from celery_statemanager.cli.model import Counts, JobModel
from celery_statemanager.cli.rendering.bars import tag_bar
from celery_statemanager.cli.rendering.final_summary import final_summary
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.lines import Table
from celery_statemanager.cli.rendering.text import ASCII, COLOURED, PLAIN, plain, width_of
from celery_statemanager.liveness import Activity, Liveness
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation, Latch, Policy, to_datetime

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
WIDTHS = (20, 40, 60, 80, 120, 200)
HEIGHTS = (3, 5, 10, 14, 24, 30, 60)


def shown(lines):
    return "\n".join(plain(line) for line in lines)


def display(model, columns=100, rows=30, glyphs=COLOURED, **known):
    return shown(Frame(glyphs).draw(View(model, NOW, **known), columns, rows))


@pytest.fixture
def models(busy_model, job, state):
    many_tags = JobModel(job(5, tuple(f"stage-{n}" for n in range(40))), Scope())
    for n in range(0, 40, 3):
        many_tags.apply(state(n % 5, f"stage-{n}", 30))
    unique = JobModel(job(), Scope())
    for index in range(80):
        unique.apply(state(index, "ingest", -1, f"ValueError: page {chr(0x4E00 + index)}"))
    wide = JobModel(job(3, ("Bühne " + "面" * 60,), job_id="名" * 150, run_token="r" * 150), Scope())
    wide.apply(state(1, "Bühne " + "面" * 60, 12, "👩\u200d👩\u200d👧 " * 90))
    return [JobModel(job(), Scope()), busy_model(), busy_model(running=3), busy_model(100_000), many_tags, unique, wide]


@pytest.mark.parametrize("columns", [50, 60, 80])
def test_counts_and_remarks_are_complete_on_a_narrow_terminal(busy_model, columns):
    known = Liveness(Activity.NO_WORKER, lease=30.0)
    words = " ".join(display(busy_model(), columns, 24, liveness=known).split())
    assert "start a worker, or compare the store_url of the running ones" in words
    assert "waiting" in words


@pytest.mark.parametrize("glyphs", [COLOURED, PLAIN, ASCII])
@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_the_display_fits_the_terminal(models, columns, rows, glyphs):
    for model in models:
        console = Console(width=columns, height=rows, file=io.StringIO(), record=True, force_terminal=True)
        lines = Frame(glyphs).draw(View(model, NOW, rate=4.1, eta=32.0), columns, rows)
        console.print(Group(*(Text.assemble(*((span.text, "") for span in line), no_wrap=False) for line in lines)))
        assert len(console.export_text().splitlines()) == len(lines) <= rows
        assert max(cell_len(plain(line)) for line in lines) <= columns


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_summary_fits_its_width(models, columns):
    for model in models:
        for line in final_summary(View(model, NOW), columns, COLOURED):
            assert width_of(line) <= columns


def test_the_header_names_the_job_and_counts_its_cells(busy_model):
    lines = display(busy_model(run_token="r7"), rate=4.1, eta=32.0).splitlines()
    assert re.fullmatch(r" etl-42 · 100 tasks · run r7 +running · 2m 14s", lines[0])
    assert re.fullmatch(r" 40 of 200 finished · 30 running · 7 failed · 123 waiting +4\.1/s · ETA 32s", lines[1])


def test_the_header_names_what_is_watched_of_the_job(job):
    assert "etl-42 · 100 tasks · tag export · task 3 " in display(JobModel(job(), Scope("export", 3)))


def test_the_header_shows_the_end_of_a_job(job, state):
    model = JobModel(job(1, None), Scope())
    model.loading = False
    model.apply(state(0, "ingest", Status.FINISHED))
    assert "all done" in display(model)
    model.job = job(1, ("ingest",)).with_latches(settled=Latch(decided_at=model.job.created_at))
    assert "settled · 0s" in display(model)


def test_each_tag_has_a_bar(busy_model):
    drawn = display(busy_model())
    assert re.search(r"^ ingest  ━+─+  52%  40/100 *$", drawn, re.MULTILINE)
    assert re.search(r"^ export  ━+─+   0%   0/100  7 failed$", drawn, re.MULTILINE)


def test_running_rows_show_bar_percent_age_and_message(busy_model):
    drawn = display(busy_model(running=2))
    assert re.search(r"^  40  ingest  ━━━━╸─+  40%    3s  Seite 4 von 10: 日本語 x+…$", drawn, re.MULTILINE)


def test_rows_that_do_not_fit_are_counted(busy_model):
    drawn = display(busy_model(running=30), rows=30)
    rows = len(re.findall(r"Seite", drawn))
    assert f"… and {30 - rows} more running" in drawn


def test_failures_are_grouped_by_cause_with_their_rows(busy_model):
    drawn = display(busy_model(running=2))
    assert re.search(r"✗ FAILED     export  3,17-20 \(5\)  ValueError: no such page", drawn)
    assert re.search(r"✗ TIMED_OUT  export  22           soft time limit \[2Jexceeded", drawn)
    assert re.search(r"✗ -12        export  23$", drawn, re.MULTILINE)


def test_a_failure_is_visible_on_a_small_terminal(busy_model):
    drawn = display(busy_model(running=500), columns=80, rows=9)
    assert "✗" in drawn
    assert "… and 2 more failed, by other causes" in drawn


def test_many_rows_of_one_cause_are_only_counted(job, state):
    model = JobModel(job(5_000), Scope())
    for index in range(2_000):
        model.apply(state(index, "ingest", -1, "boom"))
    assert re.search(r"2,000 rows  boom", display(model))


def test_a_long_list_of_rows_is_cut_and_counted(job, state):
    model = JobModel(job(1_000), Scope())
    for index in range(0, 200, 2):
        model.apply(state(index, "ingest", -1, "boom"))
    assert re.search(r"0,2,4,6,8,10,… \(100\)  boom", display(model))


def test_a_row_keeps_its_line_until_it_ends_and_a_new_row_takes_it(job, state):
    model, frame = JobModel(job(tags=("ingest",)), Scope()), Frame(COLOURED)

    def indexes():
        drawn = shown(frame.draw(View(model, NOW), 80, 12))
        return [int(found) for found in re.findall(r"^ +(\d+)  started", drawn, re.MULTILINE)]

    for index in range(20):
        model.apply(state(index, "ingest", 1))
    first = indexes()
    model.apply(state(first[1], "ingest", Status.FINISHED))
    assert indexes() == [first[0], first[-1] + 1, *first[2:]]


def test_a_row_without_recent_progress_is_marked(job, state):
    model = JobModel(job(), Scope())
    model.apply(state(1, "ingest", 40, age=90))
    model.apply(state(2, "ingest", 40, age=9))
    lines = Frame(COLOURED).draw(View(model, NOW), 80, 30)
    ages = {span.text.strip(): span.style for line in lines for span in line if span.text.strip() in ("1m", "9s")}
    assert ages == {"1m": "warn", "9s": "dim"}


def test_a_later_attempt_is_shown(job, state):
    model = JobModel(job(), Scope())
    model.apply(state(1, "ingest", 1, "again", attempt=3))
    assert "attempt 3 · again" in display(model)


def test_a_status_without_percentage_is_shown_as_a_number(job, state):
    model = JobModel(job(), Scope())
    model.apply(state(1, "ingest", 4_000))
    assert "status 4000" in display(model)


def test_unplanned_tags_are_marked(job, state):
    model = JobModel(job(), Scope())
    model.apply(state(1, "ingset", 40))
    assert re.search(r"ingset .*not planned", display(model))


@pytest.mark.parametrize(
    ("known", "changes", "word"),
    [
        ({"connected": False}, {}, "reconnecting…"),
        ({}, {"cancelled": Cancellation("user asked", 0)}, "cancelled: user asked"),
        ({}, {"tombstoned_at": 1}, "marked deleted"),
        ({}, {}, "running"),
    ],
)
def test_special_conditions_are_shown(busy_model, known, changes, word):
    model = busy_model(**changes)
    assert word in display(model, **known)


def policy_lines(model, **sizes):
    return [line for line in display(model, **sizes).splitlines() if "failed row" in line or "deadline" in line]


def test_the_tolerated_failures_and_the_deadline_are_shown_while_the_job_runs(busy_model):
    soon = int((NOW + timedelta(minutes=12, seconds=4)).timestamp() * 1_000_000)
    both = busy_model(policy=Policy(max_failed=5, deadline=soon))
    moment = to_datetime(soon).astimezone()
    (line,) = policy_lines(both)
    assert line == f" at most 5 failed rows · deadline in 12m 04s ({moment:%Y-%m-%d %H:%M:%S})"
    assert policy_lines(busy_model(policy=Policy(max_failed=1))) == [" at most 1 failed row"]
    assert policy_lines(both, rows=10) == []
    assert policy_lines(busy_model()) == []
    cancelled = busy_model(policy=Policy(max_failed=5, deadline=soon), cancelled=Cancellation("user asked", 0))
    assert policy_lines(cancelled) == []


LIVENESS = [
    (Liveness(Activity.WORKING, lease=30.0), "running", None),
    (Liveness(Activity.NO_WORKER), "no live worker", "start a worker, or compare the store_url of the running ones"),
    (Liveness(Activity.NO_WORKER, lost=True), "no live worker", "a worker died; no sweep is due: start a worker"),
    (
        Liveness(Activity.LOST, lost=True, lease=30.0),
        "no progress for 3s",
        "a worker died; the first sweep of a live worker marks its tasks or publishes them again",
    ),
    (Liveness(Activity.IDLE, lease=2.0), "no progress for 3s", "no live worker has received any of its tasks"),
    (Liveness(Activity.IDLE, lease=4.0), "running", None),
    (
        Liveness(Activity.LOST, lost=True, sweep_at=1_772_366_400_000_000, lease=30.0),
        r"waiting for the sweep at \d\d:00:00",
        r"a worker died; the sweep at \d\d:00:00 marks its tasks or publishes them again",
    ),
    (
        Liveness(Activity.WORKING, lost=True, sweep_at=1_772_366_400_000_000, lease=30.0),
        "running",
        r"a worker died; the sweep at \d\d:00:00 marks its tasks",
    ),
]


@pytest.mark.parametrize(("known", "word", "remark"), LIVENESS)
def test_missing_workers_are_shown_with_what_happens_next(busy_model, known, word, remark):
    """The last write of the job was 3 seconds ago."""
    lines = display(busy_model(), liveness=known).splitlines()
    assert re.search(rf" {word} · 2m 14s$", lines[0])
    shown_remark = next((line for line in lines if re.match(" (start|a worker|no live)", line)), None)
    assert (shown_remark is None) is (remark is None)
    assert remark is None or re.search(remark, shown_remark)


def test_a_job_that_is_over_needs_no_worker(job, state):
    model = JobModel(job(1, ("ingest",)), Scope())
    model.loading = False
    model.apply(state(0, "ingest", Status.FINISHED))
    drawn = display(model, liveness=Liveness(Activity.NO_WORKER, lost=True))
    assert "worker" not in drawn
    assert "all done" in drawn


def test_a_job_that_has_not_begun_is_waiting(job):
    model = JobModel(job(), Scope())
    assert "reading…" in display(model)
    model.loading = False
    assert "waiting" in display(model).splitlines()[0]


def test_tags_that_are_over_are_hidden_first(job, state):
    model = JobModel(job(1, tuple(f"stage-{n}" for n in range(20))), Scope())
    for n in range(19):
        model.apply(state(0, f"stage-{n}", Status.FINISHED))
    drawn = display(model, rows=12)
    assert "stage-19" in drawn
    assert "more tags" in drawn


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(100, 0, 0, 0, 0, 100, 0.0), "." * 10),
        (Counts(100, 50, 10, 0, 0, 40, 5.0), "#####....."),
        (Counts(100, 50, 20, 0, 0, 30, 10.0), "#####=...."),
        (Counts(100, 99, 1, 0, 0, 0, 0.9), "#########."),
        (Counts(100, 99, 0, 1, 0, 0, 0.0), "#########x"),
        (Counts(100, 0, 0, 1, 0, 99, 0.0), "x........."),
        (Counts(100, 0, 0, 100, 0, 0, 0.0), "x" * 10),
        (Counts(3, 1, 0, 1, 0, 1, 0.0), "###xxx...."),
        (Counts(100, 100, 0, 0, 0, 0, 0.0), "#" * 10),
        (Counts(60, 2, 0, 58, 0, 0, 0.0), "#xxxxxxxxx"),
        (Counts(60, 2, 0, 0, 58, 0, 0.0), "#---------"),
        (Counts(60, 0, 0, 20, 20, 20, 0.0), "xxx---...."),
        (Counts(60, 0, 0, 1, 59, 0, 0.0), "x---------"),
        (Counts(0, 0, 0, 0, 0, 0, 0.0), "." * 10),
    ],
)
def test_segments_of_a_bar(counts, expected):
    assert "".join(span.text for span in tag_bar(counts, 10, ASCII)) == expected


def test_the_summary_lists_failures_by_code_and_message(busy_model):
    drawn = shown(final_summary(View(busy_model(), NOW), 100, COLOURED))
    assert "not settled after 2m 14s: 40 of 200 finished · 30 running · 7 failed · 123 waiting" in drawn
    assert "✗ FAILED     export  3,17-20 (5)  ValueError: no such page" in drawn


def test_the_summary_of_a_settled_job_shows_its_duration(job, state):
    settled = job(2, ("ingest",))
    end = Latch(decided_at=settled.created_at + 61_000_000)
    model = JobModel(settled.with_latches(settled=end), Scope())
    for index in range(2):
        model.apply(state(index, "ingest", Status.FINISHED))
    assert "✓ all finished in 1m 01s: 2 of 2 finished" in shown(final_summary(View(model, NOW), 80, COLOURED))


def test_a_job_without_a_plan_ended_at_its_last_write(job, state):
    model = JobModel(job(1, None), Scope())
    model.apply(state(0, "ingest", -1, "boom", age=100))
    later = View(model, NOW + timedelta(days=1))
    assert "✗ settled in 34s: 0 of 1 finished · 1 failed" in shown(final_summary(later, 80, COLOURED))


def test_the_summary_of_a_cancelled_job_lists_the_rows_that_never_began(job, state):
    model = JobModel(job(10, ("ingest",), cancelled=Cancellation("user asked", 0)), Scope())
    model.apply(state(4, "ingest", Status.FINISHED))
    model.apply(state(5, "ingest", Status.CANCELLED, "user asked"))
    assert "✗ CANCELLED  0-3,5-9 (9)  user asked" in shown(final_summary(View(model, NOW), 80, COLOURED))


def test_the_summary_wraps_long_rows_and_messages(job, state):
    model = JobModel(job(1_000, ("ingest",)), Scope())
    for index in range(0, 60, 2):
        model.apply(state(index, "ingest", -1, "word " * 40))
    drawn = shown(final_summary(View(model, NOW), 60, COLOURED))
    assert "56,58 (30)" in drawn
    assert drawn.count("word word") > 3


def test_the_summary_shortens_a_long_tag_and_keeps_wide_messages_complete(job, state):
    model = JobModel(job(3, ("t" * 90, "u" * 90)), Scope())
    model.apply(state(1, "t" * 90, -9, "日" * 60))
    drawn = shown(final_summary(View(model, NOW), 80, COLOURED))
    assert re.search(r"✗ -9  t+…  1\n", drawn)
    assert drawn.count("日") == 60


def test_a_table_aligns_wide_tags(job, state):
    table = Table(job(3, ("取り込み", "書き出し")), 80, COLOURED)
    assert "取り込み  40%" in plain(table.row(state(1, "取り込み", 40)))
    assert width_of(table.header()) == width_of(table.row(state(1, "取り込み", 40, "message")))


def test_the_summary_limits_the_number_of_causes(models):
    assert "… and 60 more failed, by other causes" in shown(final_summary(View(models[5], NOW), 80, COLOURED))
