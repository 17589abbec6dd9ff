"""Serve the pages of a store on a port, in a process that a test kills: ``pages_server.py STORE_URL PORT``."""

import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2]))

from web_kit import everyone, new_states

if __name__ == "__main__":
    _, url, port = sys.argv
    uvicorn.run(new_states(url).web(everyone), port=int(port), log_level="critical", lifespan="off", ws="none")
