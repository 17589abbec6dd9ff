"""The public names change only together with their record and the changelog."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "record_api.py"


@pytest.fixture(scope="module")
def record_api():
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("record_api")
    sys.path.remove(str(SCRIPT.parent))


def test_the_record_is_current_and_the_changelog_mentions_each_change():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_change_must_be_in_the_changelog(record_api, tmp_path, monkeypatch, capsys):
    now = record_api.current()
    earlier = {**now, "settings": [each for each in now["settings"] if each != "statemanager_lease"]}
    record, changelog = tmp_path / "api.json", tmp_path / "CHANGELOG.md"
    record.write_text(json.dumps({"changed": [], "api": earlier}))
    changelog.write_text("nothing\n")
    monkeypatch.setattr(record_api, "RECORD", record)
    monkeypatch.setattr(record_api, "CHANGELOG", changelog)
    monkeypatch.setattr(sys, "argv", ["record_api.py", "--check"])
    assert record_api.main() == 1
    assert capsys.readouterr().err == "changed: statemanager_lease; run: make api\n"
    monkeypatch.setattr(sys, "argv", ["record_api.py"])
    assert record_api.main() == 1
    assert "does not mention: statemanager_lease" in capsys.readouterr().err
    changelog.write_text("- `statemanager_lease`: …\n")
    assert record_api.main() == 0
    assert json.loads(record.read_text()) == {"changed": ["statemanager_lease"], "api": now}


def test_the_record_has_every_kind_of_name(record_api):
    api = record_api.current()
    assert "StateManager.job(self, job_id, run_token=)" in api["names"]
    assert "Outbox.claim" in {each.partition("(")[0] for each in api["store contract"]}
    assert "web-state --port" in api["commands"]
    assert "A state: taskID" in api["wire"]
    assert "LOST = -6" in api["statuses"]
    assert all(len(lines) == len({*lines}) > 3 for lines in api.values())
