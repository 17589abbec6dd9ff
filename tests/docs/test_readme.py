"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EAGER = {"task_always_eager": True, "statemanager_store_url": "memory://"}


def blocks():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_every_block_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    first, *others = blocks()
    exec(compile(first, "README.md", "exec"), names)
    names["app"].conf.update(EAGER)
    job = names["start"](["a", "b"])
    assert capsys.readouterr().out == f"all done: {job.id}\n"
    for number, block in enumerate(others, 2):
        own_app = block.startswith("app = Celery(")
        exec(compile(block, f"README.md block {number}", "exec"), {**names} if own_app else names)
    job = names["run"](["a", "b"])
    assert job.summary().finished == 2
    names["follow"](job.id)
    assert "replay resize 0" in capsys.readouterr().out
    loaded = names["states"].submit([names["load"].s("x")])
    assert loaded.summary().finished == 1
    assert names["Manager"].open(names["store"], "etl-42").summary("ingest").finished == 1


def test_settings_are_documented_as_they_are():
    from dataclasses import fields

    from celery_statemanager.integration.settings import Settings

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`statemanager_(\w+)` \|", text)) == {each.name for each in fields(Settings)}
