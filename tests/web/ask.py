"""Measure how fast a server answers: ``ask.py URL COUNT``. Prints the seconds of each request as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time

import httpx

if __name__ == "__main__":
    took = []
    with httpx.Client(trust_env=False, timeout=30) as client:
        for _ in range(int(sys.argv[2])):
            threading.Event().wait(0.05)
            began = time.perf_counter()
            assert client.get(sys.argv[1]).status_code == 200
            took.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps(took))
