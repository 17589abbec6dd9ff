"""What design.md says of the code is there: files, rules, tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "design.md").read_text(encoding="utf-8")
PLACES = ["", "celery_statemanager/", "celery_statemanager/testing/", "celery_statemanager/stores/"]


def found(name):
    """Give the file of a name as the document writes it: from the root, or from where its section is about."""
    direct = [ROOT / place / name for place in PLACES if (ROOT / place / name).is_file()]
    return direct or [*(ROOT / "celery_statemanager").rglob(name)]


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`([\w./]+\.(?:py|lua|sql|json|yml|toml))`", TEXT))
    assert len(names) > 30
    assert not {name for name in names if not found(name)}


def test_each_rule_is_stated_and_named_by_the_tests_that_are_said_to_hold_it():
    stated = re.findall(r"^- \*\*(R\d+) ", TEXT, re.MULTILINE)
    assert stated == [f"R{number}" for number in range(1, 19)]
    tested = set()
    for rules, files in re.findall(r"^\| (R[\d, R]+) \| (`.*`) \|$", TEXT, re.MULTILINE):
        for rule in rules.split(", "):
            tested.add(rule)
            assert any(
                re.search(rf"\b{rule}\b", found(name)[0].read_text()) for name in re.findall("`(.+?)`", files)
            ), rule
    assert tested == {*stated}


def test_the_house_has_every_room():
    house = TEXT.partition("## 5. The house")[2].partition("## 6.")[0]
    package = ROOT / "celery_statemanager"
    rooms = {
        path.stem
        for folder in ("", "integration", "stores")
        for path in (package / folder).iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert len(rooms) > 50
    assert not {room for room in rooms if not re.search(rf"\b{room}\b", house)}
