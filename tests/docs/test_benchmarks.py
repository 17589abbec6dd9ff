"""The benchmarks run: each figure is measured, at sizes too small to mean anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "modules",
    [
        "writes sizes streams space imports",
        pytest.param("jobs untracked submits in_flight", marks=pytest.mark.full),
        pytest.param("firestore", marks=pytest.mark.full),
    ],
)
def test_every_figure_is_measured(modules, tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--json", str(results), *modules.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    assert len(found["figures"]) >= len(modules.split())
    for figure in found["figures"]:
        assert figure["ours"] > 0, figure
        assert figure["what"][:52] in done.stdout
    assert found["machine"]["python"] == sys.version.split()[0]


def test_every_module_can_be_imported():
    """Also those that only ``--full`` runs: they lean on modules of the tests."""
    imports = (
        "import importlib, benchmarks.__main__ as b; [importlib.import_module(f'benchmarks.{n}') for n in b.MODULES]"
    )
    done = subprocess.run([sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_module_that_fails_costs_no_other_its_figures(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--json", str(results), "harness", "imports"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    found = json.loads(results.read_text())
    assert found["missing"].keys() == {"harness"}
    assert "harness: not measured, AttributeError" in done.stdout
    assert found["figures"][0]["what"] == "import celery_statemanager"
    page = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", str(results)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert page.startswith("# Benchmark results\n")
    assert f"| date | {found['date']} |" in page
    assert page.count("| import celery |") == 1
    assert "Not measured: harness (AttributeError" in page
