"""The schema of a file: the same whether the file is new or was migrated."""

import re
from importlib.resources import files

import celery_statemanager.stores.sqlite as package
from celery_statemanager.stores.sqlite import connection

CREATE_INDEX = re.compile(r"CREATE INDEX (\w+) ON")


def indexes(text: str) -> dict[str, str]:
    """Return the statements that create indexes, by name; the last one of each."""
    statements = (" ".join(each.split()) for each in text.split(";"))
    return {found[1]: each for each in statements if (found := CREATE_INDEX.match(each))}


def test_an_index_of_a_migrated_file_is_that_of_a_new_one() -> None:
    new = indexes(files(package).joinpath("schema.sql").read_text(encoding="utf-8"))
    migrated = indexes(";".join(each for steps in connection._MIGRATIONS.values() for each in steps))
    assert migrated
    assert migrated == {name: new[name] for name in migrated}
