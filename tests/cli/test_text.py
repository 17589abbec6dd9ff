"""Text stays within its columns, whatever characters it contains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import (
    ASCII,
    COLOURED,
    PLAIN,
    Span,
    clean,
    cut,
    encodable,
    fit,
    fit_middle,
    glyphs_for,
    left,
    plain,
    right,
    spread,
    width,
    width_of,
    wrapped,
    wrapped_line,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(clean)


@given(texts, st.integers(0, 30))
def test_fit_text_is_never_too_wide(text, columns):
    assert width(fit(text, columns)) <= columns


@given(texts, st.integers(0, 30))
def test_padded_text_is_exactly_as_wide_as_asked(text, columns):
    assert width(left(text, columns)) == width(right(text, columns)) == columns


@given(texts, st.integers(2, 30), st.integers(1, 5))
def test_wrapped_text_fits_and_loses_only_spaces_before_its_last_line(text, columns, most):
    lines = wrapped(text, columns, most)
    assert len(lines) <= most
    assert max(map(width, lines)) <= columns
    whole = "".join(lines).replace(" ", "").removesuffix("…")
    assert "".join(text.split()).replace(" ", "").startswith(whole) or text.strip().replace(" ", "").startswith(whole)


def test_text_is_wrapped_at_spaces_and_after_commas():
    assert wrapped("a page was lost", 10, 9) == ["a page was", "lost"]
    assert wrapped("1-3,17-20,31", 8, 9) == ["1-3,", "17-20,31"]
    assert wrapped("日本語日本語", 7, 9) == ["日本語", "日本語"]
    assert wrapped("one two three four", 5, 2) == ["one", "two …"]


@given(texts, st.integers(0, 30))
def test_text_without_its_middle_is_never_too_wide(text, columns):
    assert width(fit_middle(text, columns)) <= columns


def test_text_without_its_middle_keeps_both_ends():
    assert fit_middle("images of customer 17", 12) == "images…er 17"
    assert fit_middle("images", 6) == "images"
    assert fit_middle("日本語の本", 7) == "日本…本"
    assert fit_middle("images", 2) == "i…"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (40, ["cells  4 of 20 finished · 6 running"]),
        (30, ["cells  4 of 20 finished", "       6 running"]),
        (20, ["cells  4 of 20", "       finished", "       6 running"]),
        (5, ["cells  4 of 20 finished · 6 running"]),
    ],
)
def test_a_line_is_wrapped_between_its_parts_or_at_spaces(columns, expected):
    line = [Span("cells  ", "dim"), Span("4 of 20 finished"), Span(" · ", "dim"), Span("6 running", "busy")]
    lines = wrapped_line(line, columns, 7, 3, PLAIN)
    assert [plain(each) for each in lines] == expected
    assert Span("6 running", "busy") in lines[-1]


@given(st.lists(texts, max_size=5), st.integers(1, 30), st.integers(1, 5))
def test_a_wrapped_line_loses_nothing_but_its_gaps(parts, columns, most):
    lines = wrapped_line([Span(part) for part in parts], columns, 2, most, PLAIN)
    assert len(lines) <= most
    whole = "".join(span.text for line in lines for span in line)
    assert "".join(whole.split()).replace("·", "") == "".join("".join(parts).split()).replace("·", "")


@given(st.lists(texts, max_size=5), st.integers(0, 30))
def test_a_cut_line_is_never_too_wide(parts, columns):
    assert width_of(cut([Span(part) for part in parts], columns)) <= columns


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語", "e\u0301", "👩\u200d👩\u200d👧", "❤\ufe0f", "한글"])
def test_widths_are_those_of_a_terminal(text):
    assert width(clean(text)) == cell_len(clean(text))


def test_clean_text_contains_no_control_characters():
    assert clean("a\nb\tc\x1b[2J\x07\u202ed") == "a b c[2Jd"


@pytest.mark.parametrize(
    ("encoding", "colour", "expected"),
    [("utf-8", True, COLOURED), ("utf-8", False, PLAIN), ("ascii", True, ASCII), ("latin-1", False, ASCII)],
)
def test_the_glyphs_are_encodable(encoding, colour, expected):
    assert glyphs_for(encoding, colour=colour) is expected


def test_an_unknown_encoding_gets_ascii():
    assert glyphs_for("no-such-encoding", colour=True) is ASCII


def test_characters_that_cannot_be_encoded_become_question_marks():
    assert encodable("Größe 日", "latin-1") == "Größe ?"


def test_two_parts_that_do_not_fit_are_put_on_two_lines():
    start, end = [Span("a" * 10)], [Span("b" * 10)]
    assert len(spread(start, end, 21)) == 2
    assert spread(start, end, 22) == [[*start, Span("  "), *end]]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59.9, "59s"), (134, "2m 14s"), (3_900, "1h 05m"), (90_000, "1d 01h"), (-3, "0s")],
)
def test_durations(seconds, expected):
    assert formatting.duration(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-1, "now"), (0.4, "now"), (59, "59s"), (61, "1m"), (7200, "2h"), (200_000, "2d")]
)
def test_ages(seconds, expected):
    assert formatting.age(seconds) == expected
    assert formatting.ago(seconds) == ("now" if expected == "now" else f"{expected} ago")


@pytest.mark.parametrize(
    ("per_second", "expected"), [(312, "312/s"), (4.12, "4.1/s"), (0.42, "25/min"), (0.001, "3.6/h")]
)
def test_rates(per_second, expected):
    assert formatting.rate(per_second) == expected


@pytest.mark.parametrize(
    ("code", "fraction", "expected"),
    [
        (0, 0.0, "NOT_STARTED"),
        (1, 0.0, "STARTED"),
        (1, 0.01, "1%"),
        (40, 0.4, "40%"),
        (2_000, None, "2000"),
        (2**31 - 1, 1.0, "FINISHED"),
        (-5, None, "TIMED_OUT"),
        (-12, 0.5, "-12"),
    ],
)
def test_statuses(code, fraction, expected):
    assert formatting.status(code, fraction) == expected


def test_a_percentage_is_100_only_when_all_is_done():
    assert formatting.percent(0.9999) == "99%"
    assert formatting.percent(0.29) == "29%"
    assert formatting.percent(1.0) == "100%"
