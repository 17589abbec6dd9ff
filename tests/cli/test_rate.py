"""The rate is that of the last minute; until it is known, there is none."""

from celery_statemanager.cli.rendering.live import Rate


def test_the_rate_is_unknown_at_first():
    rate = Rate(100.0)
    rate.add(101.0, 5.0)
    assert rate.per_second is None
    assert rate.eta(10) is None


def test_during_the_first_minute_the_whole_run_counts():
    rate = Rate(0.0)
    rate.add(100.0, 50.0)
    assert rate.per_second == 0.5
    assert rate.eta(25) == 50.0


def test_after_a_minute_only_the_last_minute_counts():
    rate = Rate(0.0)
    for second in range(200):
        rate.add(1_000.0 + second, 10.0 + 2.0 * second)
    assert rate.per_second is not None
    assert 1.9 < rate.per_second < 2.1


def test_a_standstill_has_no_eta():
    rate = Rate(0.0)
    for second in range(200):
        rate.add(100.0 + second, 10.0)
    assert rate.per_second is None


def test_a_finished_job_has_no_eta():
    rate = Rate(0.0)
    rate.add(100.0, 50.0)
    assert rate.eta(0) is None


def test_memory_does_not_grow_with_the_number_of_samples():
    rate = Rate(0.0)
    for step in range(10_000):
        rate.add(step / 10, step)
    assert len(rate._samples) < 100
