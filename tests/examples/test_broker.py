"""The broker in a folder delivers each message, also to a consumer that has found the folder empty."""

import os
import threading
from queue import Empty

import pytest
from kombu import Connection

from examples import broker


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queue"


@pytest.fixture
def channels(tmp_path):
    options = broker.settings(tmp_path)
    url, transport = options["broker_url"], options["broker_transport"]
    with Connection(url, transport=transport, transport_options=options["broker_transport_options"]) as connection:
        yield connection.channel(), connection.channel()


@pytest.mark.parametrize("age", [0, 10])
def test_a_message_arrives_after_its_queue_was_found_empty(channels, folder, age):
    sender, receiver = channels
    for number in range(3):
        changed = folder.stat().st_mtime - age
        os.utime(folder, (changed, changed))
        for _ in range(2):
            with pytest.raises(Empty):
                receiver._get("work")
        sender._put("other", {"number": -1})
        sender._put("work", {"number": number})
        assert receiver._get("work") == {"number": number}


def test_every_message_arrives_once_while_others_arrive(channels):
    sender, receiver = channels
    total, received = 300, []

    def receive():
        while len(received) < total:
            try:
                received.append(receiver._get("work")["number"])
            except Empty:
                continue

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    for number in range(total):
        sender._put("work", {"number": number})
    thread.join(20)
    assert received == [*range(total)]
