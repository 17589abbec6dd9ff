"""The speed is that of the last minute, and not told before it is known."""

from celery_statemanager.cli.rendering.live import Pace


def test_nothing_is_known_at_first():
    pace = Pace(100.0)
    pace.note(101.0, 5.0)
    assert pace.rate is None
    assert pace.eta(10) is None


def test_before_a_minute_of_watching_the_whole_run_counts():
    pace = Pace(0.0)
    pace.note(100.0, 50.0)
    assert pace.rate == 0.5
    assert pace.eta(25) == 50.0


def test_after_a_minute_only_the_last_minute_counts():
    pace = Pace(0.0)
    for second in range(200):
        pace.note(1_000.0 + second, 10.0 + 2.0 * second)
    assert pace.rate is not None
    assert 1.9 < pace.rate < 2.1


def test_a_standstill_has_no_eta():
    pace = Pace(0.0)
    for second in range(200):
        pace.note(100.0 + second, 10.0)
    assert pace.rate is None


def test_nothing_left_has_no_eta():
    pace = Pace(0.0)
    pace.note(100.0, 50.0)
    assert pace.eta(0) is None


def test_memory_does_not_grow_with_the_number_of_notes():
    pace = Pace(0.0)
    for step in range(10_000):
        pace.note(step / 10, step)
    assert len(pace._samples) < 100
