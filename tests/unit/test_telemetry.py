"""OpenTelemetry metrics, their attributes, and the modules loaded without them."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from celery_statemanager import AttemptSuperseded, Manager, Status, Store, StoreError, StoreUnavailable, open_store
from celery_statemanager.integration.app import find_metrics
from celery_statemanager.metrics import Metrics
from celery_statemanager.records import Begin, Verdict, When, Write, new_event_id
from celery_statemanager.telemetry import OpenTelemetry, class_of, outcome_of
from celery_statemanager.testing import WrappedStore

FINISHED = int(Status.FINISHED)


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def metrics(reader):
    return OpenTelemetry(MeterProvider([reader], shutdown_on_exit=False))


@pytest.fixture
def store(metrics):
    return metrics.measured(open_store("memory://"))


@pytest.fixture
def read(reader):
    """Return a function that maps the attribute values of each point of a metric to its sum or count."""

    def read(name):
        data = reader.get_metrics_data()
        points = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            if metric.name == f"statemanager.{name}":
                for point in metric.data.data_points:
                    points[tuple(point.attributes.values())] = getattr(point, "count", None) or point.value
        return points

    return read


def test_states_are_counted_by_class(store, read):
    managers = [Manager.create(store, "job", num_tasks=9, tags=("a",), task_index=0)]
    managers += [Manager.open(store, "job", task_index=row) for row in range(1, 9)]
    for manager, status in zip(managers, (0, 1, 40, 5_000, FINISHED, -1, -5, -42, -43)):
        manager.set_state("a", status)
    assert read("states") == {
        ("not_started",): 1,
        ("started",): 1,
        ("running",): 2,
        ("finished",): 1,
        ("failed",): 1,
        ("timed_out",): 1,
        ("error",): 2,
    }


def test_a_repeated_write_is_timed_but_not_counted_as_a_state(store, read):
    manager = Manager.create(store, "job", num_tasks=1, tags=("a",), task_index=0)
    for _ in range(3):
        manager.set_state("a", 5, event_id="same")
    assert read("states") == {("running",): 1}
    assert read("write.duration") == {("write", "done"): 3}


def test_writes_and_begins_are_timed_by_outcome(store, read):
    manager = Manager.create(store, "job", num_tasks=1, tags=("a",), task_index=0)
    manager.begin("a")
    Manager.open(store, "job", task_index=0).begin("a")
    with pytest.raises(AttemptSuperseded):
        manager.set_state("a", 5)
    assert read("write.duration") == {("begin", "done"): 2, ("write", "refused"): 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreUnavailable("down"), "unavailable"),
        (StoreError("full"), "error"),
        (OSError(), "error"),
        (AttemptSuperseded("job", "a", 0, 1, 2), "refused"),
    ],
)
def test_errors_have_one_of_three_outcomes(error, outcome):
    assert outcome_of(error) == outcome


def test_open_subscriptions_are_counted(store, read):
    manager = Manager.create(store, "job", num_tasks=1, tags=("a",))
    first, second = manager.subscribe(), manager.subscribe()
    assert read("subscriptions") == {(): 2}
    first.close()
    first.close()
    assert read("subscriptions") == {(): 1}
    second.close()
    assert read("subscriptions") == {(): 0}


def test_attempts_lost_with_their_worker_are_counted_by_fate(store, read):
    ref = Manager.create(store, "job", num_tasks=4, tags=("a",)).ref

    def begin(row, **options):
        event_id = new_event_id()
        reply = store.begin(ref, Begin(tag="a", task_index=row, event_id=event_id, owner="w", **options))
        assert reply.verdict is Verdict.BEGUN
        return reply.cell.attempt

    def lose(row, status):
        attempt = begin(row)
        write = Write(tag="a", task_index=row, status=status, event_id=new_event_id(), attempt=attempt)
        write.when, write.ends_attempt, write.counts_as_loss = When.OPEN, True, True
        store.write(ref, write)

    lose(0, int(Status.LOST))
    lose(1, int(Status.STARTED))
    begin(2, supersedes=begin(2))
    begin(3, supersedes=begin(3), counts_as_loss=False)
    assert read("lost") == {("marked",): 1, ("requeued",): 1, ("taken over",): 1}


def test_the_class_attribute_has_twelve_values():
    assert len({class_of(status) for status in range(-1_000, 1_000)} | {class_of(FINISHED)}) == 12


def test_find_metrics_needs_the_setting_and_the_api(monkeypatch):
    assert type(find_metrics(wanted=True)) is OpenTelemetry
    assert type(find_metrics(wanted=False)) is Metrics
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    monkeypatch.delitem(sys.modules, "celery_statemanager.telemetry")
    assert type(find_metrics(wanted=True)) is Metrics
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(find_metrics(wanted=True)) is Metrics
    store = open_store("memory://")
    assert Metrics().measured(store) is store


def test_a_wrapped_store_delegates_every_method():
    public = {name for name, member in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert public - set(vars(WrappedStore)) <= {"close"}


def test_closing_a_measured_store_closes_the_inner_store(metrics):
    class Closing(WrappedStore):
        closed = False

        def close(self):
            self.closed = True

    inner = Closing(open_store("memory://"))
    metrics.measured(inner).close()
    assert inner.closed


APP = """
import sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from celery import Celery
from celery_statemanager import StateManager, StatefulTask
from celery_statemanager.integration.worker.sweeping import sweep

app = Celery(broker="memory://")
app.conf.update(task_always_eager=True, statemanager_store_url="memory://", statemanager_metrics=METRICS)
states = StateManager(app)

@app.task(base=StatefulTask, tag="resize")
def resize(path): ...

@app.task
def publish(job_id): ...

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
job = states.submit([resize.s("a"), resize.s("b")], on_success=publish.s())
assert job.summary().finished == 2
sweep(states)
data = reader.get_metrics_data()
for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
    for point in metric.data.data_points:
        print(metric.name, dict(point.attributes), getattr(point, "value", None) or point.count)
print("loaded", "celery_statemanager.telemetry" in sys.modules)
"""


def output_with(setting):
    script = APP.replace("METRICS", setting)
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_app_is_measured_even_if_the_provider_is_set_later():
    lines = output_with("True")
    assert "statemanager.states {'class': 'finished'} 3" in lines  # two rows and the callback
    assert "statemanager.callbacks {'latch': 'success'} 1" in lines
    assert "statemanager.sweep.duration {} 1" in lines
    assert any(
        line.startswith("statemanager.write.duration {'operation': 'begin', 'outcome': 'done'}") for line in lines
    )


def test_a_setting_disables_measuring():
    assert output_with("False") == ["loaded False"]


def test_a_release_of_the_api_without_buckets_measures_too(reader):
    class EarlierMeter:
        """The meter of OpenTelemetry before 1.30."""

        def __init__(self, meter):
            self.meter = meter

        def __getattr__(self, name):
            return getattr(self.meter, name)

        def create_histogram(self, name, unit="", description=""):
            return self.meter.create_histogram(name, unit, description)

    class EarlierProvider:
        def get_meter(self, *names):
            return EarlierMeter(MeterProvider([reader], shutdown_on_exit=False).get_meter(*names))

    OpenTelemetry(EarlierProvider()).measured(open_store("memory://")).close()
