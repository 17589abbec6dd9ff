"""The dashboard and the alerts use metrics that exist, by the names that Prometheus gives them."""

import http.server
import json
import os
import re
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from prometheus_client import REGISTRY

from celery_statemanager.telemetry import OpenTelemetry

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "docs" / "assets"
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ASSETS / "grafana-dashboard.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((ASSETS / "prometheus-alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
QUERIES = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(rule["expr"] for rule in RULES),
]
VALUES = {
    "class": "not_started started running finished failed revoked expired rejected timed_out lost cancelled error",
    "operation": "write begin",
    "outcome": "done refused unavailable error",
    "fate": "marked requeued",
    "latch": "success failure settled body errbacks",
}


def measure(provider):
    """Record one value of each instrument."""
    instruments = OpenTelemetry(provider)
    instruments.states.add(1, {"class": "finished"})
    instruments.writes.record(0.01, {"operation": "write", "outcome": "done"})
    instruments.watches.add(1)
    instruments.swept(0.5)
    instruments.lost.add(1, {"fate": "marked"})
    instruments.published("success")


@pytest.fixture(scope="module")
def names():
    """Return the names of the series that OpenTelemetry's own exporter makes for Prometheus."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    measure(provider)
    found = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    provider.shutdown()
    return {name for name in found if name.startswith("statemanager_")}


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_uses_series_and_labels_that_exist(names, query):
    used = set(re.findall(r"statemanager_\w+", query))
    assert used
    assert used <= names
    for label, values in re.findall(r'(\w+)[=!]~?"([^"$]+)"', query):
        assert set(values.split("|")) <= set(VALUES[label].split())
    assert query.count("(") == query.count(")")


def test_every_metric_is_drawn(names):
    drawn = {
        re.sub(r"_(bucket|count|sum|total)$", "", each)
        for query in QUERIES
        for each in re.findall(r"statemanager_\w+", query)
    }
    assert {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in names} == drawn


def test_the_dashboard_can_be_imported():
    assert {"title", "uid", "panels", "templating", "schemaVersion"} <= DASHBOARD.keys()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert {*re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))} <= variables


def test_the_page_names_each_alert_and_each_metric(names):
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [rule["alert"] for rule in RULES]
    assert {*re.findall(r"`(statemanager_(?!metrics|progress)\w+)`", PAGE)} == {
        re.sub(r"_(bucket|count|sum|created)$", "", name) for name in names if not name.endswith("_created")
    }


class Receiver(http.server.BaseHTTPRequestHandler):
    """Collects what an exporter sends."""

    received: ClassVar = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_exporter_of_the_page_names_its_process(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1/metrics")
    code = re.search(r"^```python\n(.*?)@worker_init", PAGE, re.DOTALL | re.MULTILINE)[1]
    found = {}
    exec(compile(code, "alerts.md", "exec"), found)
    try:
        provider = MeterProvider([PeriodicExportingMetricReader(found["ProcessExporter"]())], shutdown_on_exit=False)
        measure(provider)
        provider.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (resource,) = {str(each.resource) for request in Receiver.received for each in request.resource_metrics}
    assert f":{os.getpid()}" in resource
    assert '"shop"' in resource
