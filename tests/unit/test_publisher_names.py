"""The names under which the threads of a process claim messages."""

import os
import threading
from contextlib import ExitStack

import pytest

from celery_statemanager.integration import requests
from celery_statemanager.integration.outbox import names
from celery_statemanager.integration.outbox.names import publisher_name


@pytest.fixture(autouse=True)
def none_free(monkeypatch):
    monkeypatch.setattr(names, "_free", [])


@pytest.mark.parametrize("worker_id", ["pod-3:4711:ab12", ""])
def test_a_name_contains_the_process_and_a_number(monkeypatch, worker_id):
    monkeypatch.setenv(requests.WORKER_ID, worker_id)
    with publisher_name() as name:
        process, _, number = name.text.rpartition(".")
    assert process == f"{worker_id or requests.process_id()}/{os.getpid()}"
    assert number.isdigit()


def test_a_name_is_used_again():
    with publisher_name() as first:
        pass
    with publisher_name() as second:
        pass
    assert second.text == first.text


def test_a_name_that_leaves_a_claim_is_not_used_again():
    with publisher_name() as first:
        first.leaves_claim = True
    with publisher_name() as second:
        assert (second.text == first.text, second.leaves_claim) == (False, False)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_name_is_not_used_again_after_an_error(error):
    with pytest.raises(error), publisher_name() as first:
        raise error
    with publisher_name() as second:
        assert second.text != first.text


def test_one_thread_may_use_several_names_at_a_time():
    with ExitStack() as stack:
        used = [stack.enter_context(publisher_name()).text for _ in range(3)]
    assert len({*used}) == 3


def test_two_threads_never_share_a_name():
    held, shared, lock = set(), [], threading.Lock()
    barrier = threading.Barrier(8)

    def use():
        barrier.wait()
        for _ in range(300):
            with publisher_name() as name:
                with lock:
                    shared.extend([name.text] if name.text in held else [])
                    held.add(name.text)
                with lock:
                    held.discard(name.text)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert shared == []
    assert len(names._free) <= 8, "a process needs as many names as it has threads"


def test_a_child_has_other_names_than_its_parent(monkeypatch):
    with publisher_name() as parent:
        pass
    monkeypatch.setattr(names.os, "getpid", lambda: 0)
    with publisher_name() as child:
        assert child.text != parent.text
