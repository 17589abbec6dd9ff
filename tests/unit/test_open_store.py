"""``open_store``: URLs, their error messages, and passwords that stay hidden."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from celery_statemanager import ConfigurationError, Manager, open_store
from celery_statemanager.stores import masked

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "meant"),
    [("memry://", "memory"), ("reddis://db:6379", "redis"), ("sqlit:///x.db", "sqlite"), ("SQLITE3:///x.db", "sqlite")],
)
def test_the_error_for_a_misspelt_scheme_lists_known_schemes_and_suggests_one(url: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"known: .*memory.*sqlite.*did you mean '{meant}'\?"):
        open_store(url)


def test_the_error_for_an_unknown_scheme_makes_no_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="no store for scheme 'qqq' in qqq://x") as raised:
        open_store("qqq://x")
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["", "states.db", "/tmp/x.db", "memory", "memory:", "memory:/x", "://x", "9p://x", " memory://"]
)
def test_the_error_for_other_text_contains_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not the URL of a store; use a URL like 'sqlite:///states\.db'"):
        open_store(url)


@pytest.mark.parametrize("url", [None, 7, True, b"memory://", ..., ["memory://"]], ids=repr)
def test_a_url_must_be_a_string(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not the URL of a store"):
        open_store(url)


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db"])
def test_an_unknown_option_is_rejected(url: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        open_store(url.format(tmp_path), colour="red")


@pytest.mark.parametrize("timeout", [None, "5", True, [5], -1, float("nan"), float("inf")], ids=repr)
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db", "redis://127.0.0.1", "firestore://project"])
def test_an_invalid_timeout_is_rejected(url: str, timeout: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="a store's timeout must be a number of seconds, not"):
        open_store(url.format(tmp_path), timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.1, 5, 10**400], ids=["0", "0.1", "5", "10**400"])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db", "redis://127.0.0.1", "firestore://project"])
def test_a_valid_timeout_is_accepted(url: str, timeout: float, tmp_path: Any) -> None:
    assert open_store(url.format(tmp_path), timeout=timeout)


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1"])
def test_an_invalid_timeout_in_a_url_is_rejected(timeout: str) -> None:
    with pytest.raises(ConfigurationError, match="a store's timeout must be a number of seconds, not"):
        open_store(f"redis://127.0.0.1?timeout={timeout}")


def test_the_repr_of_a_redis_store_masks_its_password() -> None:
    assert repr(open_store(f"redis://user:{SECRET}@db:6379/0")) == "<RedisStore redis://user:**@db:6379/0>"


@pytest.mark.parametrize(
    "url",
    [
        f"qqq://user:{SECRET}@db:6379/0",
        f"qqq://:{SECRET}@db",
        f"qqq://user:{SECRET}/{SECRET}@db",
        f"qqq://user:{SECRET}@{SECRET}@db/0",
        f"qqq://db/0?password={SECRET}",
        f"qqq://db/0?x=1&api_key={SECRET}&y=2",
        f"qqq://db/0?ssl_key_password={SECRET}",
        f"qqq://db/0?auth_token={SECRET}",
        f"qqq://db/0?client_secret={SECRET}",
        f"user:{SECRET}@db",
        f"//user:{SECRET}@db",
        f"qqq://user:{SECRET}?{SECRET}@db/0",
        f"qqq://user:x#{SECRET}@db/0",
    ],
)
def test_errors_mask_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_store(url)
    assert SECRET not in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception_only(raised.value))


def test_masked_replaces_secrets_only() -> None:
    assert masked("redis://user@db:6379/0?x=1") == "redis://user@db:6379/0?x=1"
    assert masked(f"redis://user:{SECRET}@db:6379/0?password=a&x=1") == "redis://user:**@db:6379/0?password=**&x=1"
    assert masked("sqlite:////var/lib/states.db") == "sqlite:////var/lib/states.db"


def test_errors_of_a_store_mask_secrets() -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_store(f"memory://user:{SECRET}@x", colour="red")
    assert SECRET not in str(raised.value)


def test_memory_stores_are_shared_by_name() -> None:
    first, second = open_store("memory://"), open_store("memory://")
    Manager.create(first, "job", num_tasks=1)
    Manager.create(second, "job", num_tasks=1)
    assert open_store("memory://shared by this test") is open_store("memory://shared by this test")
    assert open_store("MEMORY://shared by this test") is open_store("memory://shared by this test")
    assert open_store("memory://another") is not open_store("memory://shared by this test")


def test_a_closed_store_can_be_used_again() -> None:
    with open_store("memory://") as store:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
    assert manager.set_state("a", 5).version == 1
