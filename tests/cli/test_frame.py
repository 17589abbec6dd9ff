"""A picture fits its terminal at every size, and tells what matters first."""

import io
import re
from datetime import datetime, timedelta, timezone

import pytest
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from celery_statemanager import Status
from celery_statemanager.cli.model import Board, Counts
from celery_statemanager.cli.rendering.bars import tag_bar
from celery_statemanager.cli.rendering.final_summary import closing
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.lines import Table
from celery_statemanager.cli.rendering.text import ASCII, COLOURED, PLAIN, plain, width_of
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation, Latch

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
WIDTHS = (20, 40, 60, 80, 120, 200)
HEIGHTS = (3, 5, 10, 14, 24, 30, 60)


def shown(lines):
    return "\n".join(plain(line) for line in lines)


def picture(board, columns=100, rows=30, glyphs=COLOURED, **known):
    return shown(Frame(glyphs).draw(View(board, NOW, **known), columns, rows))


@pytest.fixture
def boards(busy_board, job, state):
    many_tags = Board(job(5, tuple(f"stage-{n}" for n in range(40))), Scope())
    for n in range(0, 40, 3):
        many_tags.apply(state(n % 5, f"stage-{n}", 30))
    unique = Board(job(), Scope())
    for index in range(80):
        unique.apply(state(index, "ingest", -1, f"ValueError: page {index}"))
    wide = Board(job(3, ("Bühne " + "面" * 60,), job_id="名" * 150, run_token="r" * 150), Scope())
    wide.apply(state(1, "Bühne " + "面" * 60, 12, "👩\u200d👩\u200d👧 " * 90))
    return [Board(job(), Scope()), busy_board(), busy_board(running=3), busy_board(100_000), many_tags, unique, wide]


@pytest.mark.parametrize("glyphs", [COLOURED, PLAIN, ASCII])
@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_picture_fits_its_terminal(boards, columns, rows, glyphs):
    for board in boards:
        console = Console(width=columns, height=rows, file=io.StringIO(), record=True, force_terminal=True)
        lines = Frame(glyphs).draw(View(board, NOW, rate=4.1, eta=32.0), columns, rows)
        console.print(Group(*(Text.assemble(*((span.text, "") for span in line), no_wrap=False) for line in lines)))
        assert len(console.export_text().splitlines()) == len(lines) <= rows
        assert max(cell_len(plain(line)) for line in lines) <= columns


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_summary_fits_its_width(boards, columns):
    for board in boards:
        for line in closing(View(board, NOW), columns, COLOURED):
            assert width_of(line) <= columns


def test_the_header_names_the_job_and_counts_its_cells(busy_board):
    lines = picture(busy_board(run_token="r7"), rate=4.1, eta=32.0).splitlines()
    assert re.fullmatch(r" etl-42 · 100 tasks · run r7 +running · 2m 14s", lines[0])
    assert re.fullmatch(r" 40 of 200 finished · 30 running · 7 failed · 123 waiting +4\.1/s · ETA 32s", lines[1])


def test_the_header_names_what_is_watched_of_the_job(job):
    assert "etl-42 · 100 tasks · tag export · task 3 " in picture(Board(job(), Scope("export", 3)))


def test_the_header_says_when_it_is_over(job, state):
    board = Board(job(1, None), Scope())
    board.loading = False
    board.apply(state(0, "ingest", Status.FINISHED))
    assert "all done" in picture(board)
    board.job = job(1, ("ingest",)).with_latches(settled=Latch(decided_at=board.job.created_at))
    assert "settled · 0s" in picture(board)


def test_there_is_a_bar_for_each_tag(busy_board):
    drawn = picture(busy_board())
    assert re.search(r"^ ingest  ━+─+  52%  40/100 *$", drawn, re.MULTILINE)
    assert re.search(r"^ export  ━+─+   0%   0/100  7 failed$", drawn, re.MULTILINE)


def test_running_rows_show_bar_percent_age_and_message(busy_board):
    drawn = picture(busy_board(running=2))
    assert re.search(r"^  40  ingest  ━━━━╸─+  40%    3s  Seite 4 von 10: 日本語 x+…$", drawn, re.MULTILINE)


def test_rows_that_do_not_fit_are_counted(busy_board):
    drawn = picture(busy_board(running=30), rows=30)
    rows = len(re.findall(r"Seite", drawn))
    assert f"… and {30 - rows} more running" in drawn


def test_failures_are_told_by_kind_with_their_rows(busy_board):
    drawn = picture(busy_board(running=2))
    assert re.search(r"✗ FAILED     export  3,17-20 \(5\)  ValueError: no such page", drawn)
    assert re.search(r"✗ TIMED_OUT  export  22           soft time limit \[2Jexceeded", drawn)
    assert re.search(r"✗ -12        export  23$", drawn, re.MULTILINE)


def test_a_failure_is_seen_even_where_hardly_anything_fits(busy_board):
    drawn = picture(busy_board(running=500), columns=80, rows=9)
    assert "✗" in drawn
    assert "… and 2 more kinds of failure" in drawn


def test_many_rows_of_one_kind_are_only_counted(job, state):
    board = Board(job(5_000), Scope())
    for index in range(2_000):
        board.apply(state(index, "ingest", -1, "boom"))
    assert re.search(r"2,000 tasks  boom", picture(board))


def test_a_long_list_of_rows_is_cut_and_counted(job, state):
    board = Board(job(1_000), Scope())
    for index in range(0, 200, 2):
        board.apply(state(index, "ingest", -1, "boom"))
    assert re.search(r"0,2,4,6,8,10,… \(100\)  boom", picture(board))


def test_a_row_keeps_its_line_and_a_new_one_takes_the_line_of_one_that_ended(job, state):
    board, frame = Board(job(tags=("ingest",)), Scope()), Frame(COLOURED)

    def indexes():
        drawn = shown(frame.draw(View(board, NOW), 80, 12))
        return [int(found) for found in re.findall(r"^ +(\d+)  started", drawn, re.MULTILINE)]

    for index in range(20):
        board.apply(state(index, "ingest", 1))
    first = indexes()
    board.apply(state(first[1], "ingest", Status.FINISHED))
    assert indexes() == [first[0], first[-1] + 1, *first[2:]]


def test_a_row_that_has_long_been_silent_is_marked(job, state):
    board = Board(job(), Scope())
    board.apply(state(1, "ingest", 40, age=90))
    board.apply(state(2, "ingest", 40, age=9))
    lines = Frame(COLOURED).draw(View(board, NOW), 80, 30)
    ages = {span.text.strip(): span.style for line in lines for span in line if span.text.strip() in ("1m", "9s")}
    assert ages == {"1m": "warn", "9s": "dim"}


def test_a_later_attempt_is_told(job, state):
    board = Board(job(), Scope())
    board.apply(state(1, "ingest", 1, "again", attempt=3))
    assert "attempt 3 · again" in picture(board)


def test_a_status_without_percent_is_shown_as_it_is(job, state):
    board = Board(job(), Scope())
    board.apply(state(1, "ingest", 4_000))
    assert "status 4000" in picture(board)


def test_unplanned_tags_are_shown_as_such(job, state):
    board = Board(job(), Scope())
    board.apply(state(1, "ingset", 40))
    assert re.search(r"ingset .*not planned", picture(board))


@pytest.mark.parametrize(
    ("known", "changes", "word"),
    [
        ({"connected": False}, {}, "reconnecting…"),
        ({}, {"cancelled": Cancellation("user asked", 0)}, "cancelled: user asked"),
        ({}, {"tombstoned_at": 1}, "marked deleted"),
        ({}, {}, "running"),
    ],
)
def test_what_is_special_is_told(busy_board, known, changes, word):
    board = busy_board(**changes)
    assert word in picture(board, **known)


def test_a_job_that_nobody_began_is_waiting(job):
    board = Board(job(), Scope())
    assert "reading…" in picture(board)
    board.loading = False
    assert "waiting" in picture(board).splitlines()[0]


def test_tags_that_are_over_make_way_for_the_others(job, state):
    board = Board(job(1, tuple(f"stage-{n}" for n in range(20))), Scope())
    for n in range(19):
        board.apply(state(0, f"stage-{n}", Status.FINISHED))
    drawn = picture(board, rows=12)
    assert "stage-19" in drawn
    assert "more tags" in drawn


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(100, 0, 0, 0, 100, 0.0), "." * 10),
        (Counts(100, 50, 10, 0, 40, 5.0), "#####....."),
        (Counts(100, 50, 20, 0, 30, 10.0), "#####=...."),
        (Counts(100, 99, 1, 0, 0, 0.9), "#########."),
        (Counts(100, 99, 0, 1, 0, 0.0), "#########x"),
        (Counts(100, 0, 0, 1, 99, 0.0), "x........."),
        (Counts(100, 0, 0, 100, 0, 0.0), "x" * 10),
        (Counts(3, 1, 0, 1, 1, 0.0), "###xxx...."),
        (Counts(100, 100, 0, 0, 0, 0.0), "#" * 10),
        (Counts(0, 0, 0, 0, 0, 0.0), "." * 10),
    ],
)
def test_segments_of_a_bar(counts, expected):
    assert "".join(span.text for span in tag_bar(counts, 10, ASCII)) == expected


def test_the_summary_tells_failures_by_code_and_message(busy_board):
    drawn = shown(closing(View(busy_board(), NOW), 100, COLOURED))
    assert "not settled after 2m 14s: 40 of 200 finished · 30 running · 7 failed · 123 waiting" in drawn
    assert "✗ FAILED     export  3,17-20 (5)  ValueError: no such page" in drawn


def test_the_summary_of_a_settled_job_tells_how_long_it_took(job, state):
    settled = job(2, ("ingest",))
    end = Latch(decided_at=settled.created_at + 61_000_000)
    board = Board(settled.with_latches(settled=end), Scope())
    for index in range(2):
        board.apply(state(index, "ingest", Status.FINISHED))
    assert "✓ all finished in 1m 01s: 2 of 2 finished" in shown(closing(View(board, NOW), 80, COLOURED))


def test_a_job_without_a_plan_took_until_its_last_write(job, state):
    board = Board(job(1, None), Scope())
    board.apply(state(0, "ingest", -1, "boom", age=100))
    later = View(board, NOW + timedelta(days=1))
    assert "✗ settled in 34s: 0 of 1 finished · 1 failed" in shown(closing(later, 80, COLOURED))


def test_the_summary_of_a_cancelled_job_names_what_never_began(job, state):
    board = Board(job(10, ("ingest",), cancelled=Cancellation("user asked", 0)), Scope())
    board.apply(state(4, "ingest", Status.FINISHED))
    board.apply(state(5, "ingest", Status.CANCELLED, "user asked"))
    assert "✗ CANCELLED  0-3,5-9 (9)  user asked" in shown(closing(View(board, NOW), 80, COLOURED))


def test_the_summary_breaks_long_rows_and_messages(job, state):
    board = Board(job(1_000, ("ingest",)), Scope())
    for index in range(0, 60, 2):
        board.apply(state(index, "ingest", -1, "word " * 40))
    drawn = shown(closing(View(board, NOW), 60, COLOURED))
    assert "56,58 (30)" in drawn
    assert drawn.count("word word") > 3


def test_the_summary_parts_a_long_tag_from_its_rows_and_keeps_wide_messages_whole(job, state):
    board = Board(job(3, ("t" * 90, "u" * 90)), Scope())
    board.apply(state(1, "t" * 90, -9, "日" * 60))
    drawn = shown(closing(View(board, NOW), 80, COLOURED))
    assert re.search(r"✗ -9  t+…  1\n", drawn)
    assert drawn.count("日") == 60


def test_a_table_gives_wide_tags_their_columns(job, state):
    table = Table(job(3, ("取り込み", "書き出し")), 80, COLOURED)
    assert "取り込み  40%" in plain(table.row(state(1, "取り込み", 40)))
    assert width_of(table.head()) == width_of(table.row(state(1, "取り込み", 40, "message")))


def test_the_summary_tells_at_most_so_many_kinds(boards):
    assert "… and 60 more kinds of failure, 60 tasks" in shown(closing(View(boards[5], NOW), 80, COLOURED))
