"""1,000 clients of one job on one process, and clients that read or write too slowly (rule R25)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import httpx
import pytest
from web_kit import HEADERS, PATIENCE, Server, events, everyone

from celery_statemanager import Manager
from celery_statemanager.hub import hubs

CLIENTS = 1_000
HERE = Path(__file__).parent


@pytest.fixture
def server(store_url):
    """Run a server in another process; yield its URL."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    process = subprocess.Popen([sys.executable, str(HERE / "serve.py"), store_url], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stdout.close()


class Clients:
    """Event clients that count what they receive."""

    def __init__(self, port, view):
        self.port, self.view = port, view
        self.events = [0] * CLIENTS
        self.all_read = asyncio.Event()

    async def read(self, number):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET /api/jobs/etl/events?view={self.view} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            while data := await reader.read(65_536):
                is_first = not self.events[number]
                self.events[number] += data.count(b"\nevent: ")
                if is_first and all(self.events):
                    self.all_read.set()
        finally:
            writer.close()


@pytest.mark.parametrize("view", ["summary", "cells"])
def test_a_thousand_clients_share_one_watch(states, server, view, record_property):
    Manager.create(states.store, "etl", num_tasks=100, tags=("scan", "hash"))
    row = Manager.open(states.store, "etl", task_index=0)
    row.begin("scan")
    row.set_state("scan", 2)
    url = f"{server}/measure"

    async def body():
        clients = Clients(int(server.rpartition(":")[2]), view)
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            before = (await client.get(url)).json()
            tasks = [asyncio.create_task(clients.read(number)) for number in range(CLIENTS)]
            await clients.all_read.wait()
            asking = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / "ask.py"), f"{server}/sync", "40", stdout=subprocess.PIPE
            )
            reading, count = asyncio.create_task(asking.communicate()), 0
            while not reading.done():
                count += 1
                await asyncio.to_thread(row.set_state, "scan", 2 + count % 90)
                await asyncio.sleep(0.2)
            after = (await client.get(url)).json()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gone_by = time.monotonic() + 20
            while (await client.get(url)).json()["watches"]:
                assert time.monotonic() < gone_by
                await asyncio.sleep(0.05)
            return before, after, json.loads((await reading)[0]), min(clients.events)

    before, after, took, fewest = asyncio.run(asyncio.wait_for(body(), 3 * PATIENCE))
    each = (after["memory"] - before["memory"]) / CLIENTS
    record_property("bytes per client", round(each))
    record_property("median seconds of an answer", round(statistics.median(took), 4))
    assert after["watches"] == 1
    assert each < 2**20 / 4
    assert statistics.median(took) < 0.1
    assert fewest > 1


def test_a_client_that_does_not_read_is_closed(states, submit, monkeypatch):
    monkeypatch.setattr("celery_statemanager.web.streams.LONGEST_SEND", 0.5)
    job = submit("etl", 200, ("scan",))
    for row in range(200):
        Manager(states.store, job._record, row).set_state("scan", 2, "x" * 50_000)
    server = Server(states.web(everyone))
    try:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            slow.sendall(b"GET /api/jobs/etl/events?view=cells HTTP/1.1\r\nHost: x\r\n\r\n")
            assert slow.recv(15) == b"HTTP/1.1 200 OK"
            deadline = time.monotonic() + 20
            while not hubs._sources.get(states.store) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            while hubs._sources.get(states.store):
                assert time.monotonic() < deadline
                threading.Event().wait(0.02)
        assert httpx.get(f"{server.url}/api/jobs/etl", trust_env=False).status_code == 200
    finally:
        server.stop()


def test_large_states_do_not_stay_in_memory(states, submit, client):
    job = submit("etl", 600, ("scan",))
    for row in range(600):
        Manager(states.store, job._record, row).set_state("scan", 2, "x" * 60_000)
    tracemalloc.start()
    try:
        with events(client, "/api/jobs/etl/events", view="cells") as stream:
            assert len([*itertools.islice(stream, 600)]) == 600
        deadline = time.monotonic() + 20
        while hubs._sources.get(states.store):
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        while tracemalloc.get_traced_memory()[0] >= 40 * 2**20:  # the stream itself ends later
            assert time.monotonic() < deadline, tracemalloc.get_traced_memory()
            gc.collect()
            threading.Event().wait(0.02)
    finally:
        tracemalloc.stop()


def test_a_body_that_does_not_arrive_is_refused(client, submit, monkeypatch):
    monkeypatch.setattr("celery_statemanager.web.control.BODY_TIMEOUT", 0.2)
    job = submit("etl")

    def slowly():
        yield b'{"reason": "'
        threading.Event().wait(1)
        yield b'x"}'

    response = client.post("/api/jobs/etl/cancel", content=slowly(), headers=HEADERS)
    assert response.status_code == 408
    assert job.phase == "waiting"
