"""Every benchmark runs, at a tiny scale."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "modules",
    [
        "writes sizes lists streams subscribers space imports results",
        pytest.param("jobs chords untracked stalls submits in_flight", marks=pytest.mark.full),
        pytest.param("firestore", marks=pytest.mark.full),
        pytest.param("postgres", marks=pytest.mark.full),
    ],
)
def test_every_module_measures_its_figures(modules, tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--json", str(results), *modules.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    output = json.loads(results.read_text())
    assert len(output["figures"]) >= len(modules.split())
    for figure in output["figures"]:
        assert figure["ours"] > 0, figure
        assert figure["what"][:52] in done.stdout
    assert output["machine"]["python"] == sys.version.split()[0]


def test_every_module_can_be_imported():
    imports = (
        "import importlib, benchmarks.__main__ as b; [importlib.import_module(f'benchmarks.{n}') for n in b.MODULES]"
    )
    done = subprocess.run([sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_modules_are_measured_after_one_fails(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--json", str(results), "harness", "imports"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    output = json.loads(results.read_text())
    assert output["missing"].keys() == {"harness"}
    assert "harness: not measured, AttributeError" in done.stdout
    assert output["figures"][0]["what"] == "import celery_statemanager"
    page = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", str(results)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert page.startswith("# Benchmark results\n")
    assert f"| date | {output['date']} |" in page
    assert page.count("| import celery |") == 1
    assert "Not measured: harness (AttributeError" in page
