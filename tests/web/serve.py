"""Serve the jobs of a store in a process of its own: ``serve.py STORE_URL``. Prints the port.

The route ``/measure`` returns its resident memory in bytes, and its threads that read the watch of a job.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import resource

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from web_kit import everyone, new_states

from celery_statemanager.web.local import listen


async def measure(request):
    names = [thread.name for thread in threading.enumerate()]
    watches = sum(name in {"statemanager-hub", "statemanager-summaries"} for name in names)
    return JSONResponse({"memory": psutil.Process().memory_info().rss, "watches": watches, "threads": len(names)})


def synchronous(request):
    return JSONResponse({})


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    states = new_states(sys.argv[1])
    routes = [Route("/measure", measure), Route("/sync", synchronous), Mount("/", states.web(everyone))]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off", ws="none"))
    listening = listen(backlog=2_048)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run([listening])
