"""Metrics that the processes of a real worker export through OpenTelemetry."""

import json
import subprocess
import sys

import pytest
from celery.signals import worker_init

APP = """
from celery import Celery
from celery.signals import worker_init
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from celery_statemanager import StatefulTask, StateManager

app = Celery("measured", broker="filesystem://", broker_transport_options={folder!r})
app.conf.update(statemanager_store_url={url!r}, statemanager_sweep_interval=0.5, statemanager_lease=3)
states = StateManager(app)

@worker_init.connect
def measure(**_):
    exporter = ConsoleMetricExporter(open("metrics.jsonl", "a"), lambda data: data.to_json(indent=None) + "\\n")
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=200)]))

@app.task(base=StatefulTask, bind=True)
def work(self, number):
    self.state.set(40)
    return 1 / number

@app.task(base=StatefulTask)
def alert(job_id): ...
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Yield the module of an app whose worker runs until the test ends."""
    folder = {name: str(tmp_path) for name in ("data_folder_in", "data_folder_out", "control_folder")}
    (tmp_path / "measured.py").write_text(APP.format(folder=folder, url=f"sqlite:///{tmp_path}/states.db"))
    monkeypatch.syspath_prepend(str(tmp_path))
    celery = [sys.executable, "-m", "celery", "-A", "measured", "worker", "-c", "2"]
    worker = subprocess.Popen(
        [*celery, "--without-gossip", "--without-mingle", "--without-heartbeat"], cwd=tmp_path, start_new_session=True
    )
    import measured

    yield measured
    worker_init.disconnect(measured.measure)  # other tests send worker_init in this process
    del sys.modules["measured"]
    measured.states.store.close()
    worker.terminate()
    worker.wait(20)


def highest_values(path):
    """Return the highest value that any process exported, by metric and attributes."""
    found = {}
    text = path.read_text().rpartition("\n")[0] if path.exists() else ""
    for line in text.splitlines():
        for scope in (scope for each in json.loads(line)["resource_metrics"] for scope in each["scope_metrics"]):
            for metric in scope["metrics"]:
                for point in metric["data"]["data_points"]:
                    key = (metric["name"].removeprefix("statemanager."), *sorted(point["attributes"].values()))
                    found[key] = max(found.get(key, 0), point.get("value", point.get("count")))
    return found


def test_children_export_states_and_the_main_process_exports_sweeps(measured, tmp_path, eventually):
    job = measured.states.submit([measured.work.s(1), measured.work.s(0)], on_failure=measured.alert.s())
    job.wait(30)
    path = tmp_path / "metrics.jsonl"
    awaited = {
        ("states", "started"),
        ("states", "running"),
        ("states", "finished"),
        ("states", "failed"),
        ("write.duration", "begin", "done"),
        ("callbacks", "failure"),
        ("sweep.duration",),
    }
    eventually(lambda: awaited <= highest_values(path).keys())
    assert highest_values(path)["callbacks", "failure"] == 1
