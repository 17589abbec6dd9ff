"""Start the processes of the job on this machine, and start those again that fail, as Kubernetes does."""

import argparse
import os
import subprocess
import sys
import time

from examples.etl_managers.etl import HOME

ATTEMPTS = 5


def main() -> int:
    """Run all processes. Return 0 if each of them has succeeded."""
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    count = parser.parse_args().processes
    running = {index: start(index, count) for index in range(count)}
    failures = dict.fromkeys(running, 0)
    while running:
        time.sleep(0.05)
        for index, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[index]
            if process.returncode:
                failures[index] += 1
                print(f"index {index} failed with {process.returncode}", flush=True)
                if failures[index] == ATTEMPTS:
                    return 1
                running[index] = start(index, count)
    print(f"report: {HOME / 'report.json'}", flush=True)
    return 0


def start(index: int, count: int) -> subprocess.Popen[bytes]:
    """Start the process of one index, and print its process id."""
    environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index), "PROCESSES": str(count)}
    process = subprocess.Popen([sys.executable, "-m", "examples.etl_managers.etl"], env=environment)
    print(f"index {index}: process {process.pid}", flush=True)
    return process


if __name__ == "__main__":
    sys.exit(main())
