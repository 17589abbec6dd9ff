"""Stores by URL: what is wrong with it, what was meant, and no password anywhere."""

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
def test_an_unknown_scheme_is_told_with_the_known_ones_and_what_was_meant(url: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"known: .*memory.*sqlite.*did you mean '{meant}'\?"):
        open_store(url)


def test_a_scheme_like_none_is_told_without_a_guess() -> None:
    with pytest.raises(ConfigurationError, match="no store for scheme 'qqq' in qqq://x") as refused:
        open_store("qqq://x")
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "states.db", "/tmp/x.db", "memory", "memory:", "memory:/x", "://x", "9p://x", " memory://"]
)
def test_what_is_no_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a store is named by a URL like 'sqlite:///states\.db'"):
        open_store(url)


@pytest.mark.parametrize("url", [None, 7, True, b"memory://", ..., ["memory://"]], ids=repr)
def test_what_is_no_text_is_no_url(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="a store is named by a URL"):
        open_store(url)


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db"])
def test_an_option_that_a_store_does_not_know_is_refused(url: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        open_store(url.format(tmp_path), colour="red")


@pytest.mark.parametrize("timeout", [None, "5", True, [5], -1, float("nan"), float("inf")], ids=repr)
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db", "redis://127.0.0.1", "firestore://project"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(url: str, timeout: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="a store's timeout is a number of seconds, not"):
        open_store(url.format(tmp_path), timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.1, 5, 10**400], ids=["0", "0.1", "5", "10**400"])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/x.db", "redis://127.0.0.1", "firestore://project"])
def test_any_other_timeout_is_taken(url: str, timeout: float, tmp_path: Any) -> None:
    assert open_store(url.format(tmp_path), timeout=timeout)


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1"])
def test_a_timeout_in_a_url_is_looked_at_too(timeout: str) -> None:
    with pytest.raises(ConfigurationError, match="a store's timeout is a number of seconds, not"):
        open_store(f"redis://127.0.0.1?timeout={timeout}")


def test_a_redis_store_is_known_by_its_address_without_the_password() -> None:
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
def test_no_password_is_ever_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in "".join(traceback.format_exception_only(refused.value))


def test_what_is_no_secret_is_shown() -> None:
    assert masked("redis://user@db:6379/0?x=1") == "redis://user@db:6379/0?x=1"
    assert masked(f"redis://user:{SECRET}@db:6379/0?password=a&x=1") == "redis://user:**@db:6379/0?password=**&x=1"
    assert masked("sqlite:////var/lib/states.db") == "sqlite:////var/lib/states.db"


def test_an_error_from_a_known_scheme_hides_the_password_too() -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(f"memory://user:{SECRET}@x", colour="red")
    assert SECRET not in str(refused.value)


def test_memory_without_a_name_is_new_each_time_and_with_one_shared() -> None:
    first, second = open_store("memory://"), open_store("memory://")
    Manager.create(first, "job", num_tasks=1)
    Manager.create(second, "job", num_tasks=1)
    assert open_store("memory://shared by this test") is open_store("memory://shared by this test")
    assert open_store("MEMORY://shared by this test") is open_store("memory://shared by this test")
    assert open_store("memory://another") is not open_store("memory://shared by this test")


def test_stores_are_context_managers_that_may_be_used_again() -> None:
    with open_store("memory://") as store:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
    assert manager.set_state("a", 5).version == 1
