"""A chord whose tasks return values: submitted as a job, compared with Celery's own, in time and Redis commands."""

from __future__ import annotations

from collections.abc import Iterator

from celery import chord

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.jobs import Way, count_commands, until_ended
from benchmarks.workers import load_app, running_worker
from tests.servers import RedisServer, running_redis


def measure(scale: Scale) -> Iterator[Figure]:
    """Run both in turns, on one worker with two processes and one Redis."""
    num_tasks = scale(20, 500, 2_000)
    with running_redis() as server, running_worker(server, "prefork", 2, "celery"):
        ways = ways_to_run(server, num_tasks)
        in_turns(ways, 1)
        seconds = medians(in_turns(ways, scale(1, 3, 9)))
        what = f"submit(chord) of {num_tasks:,} results"
        yield Figure(what, "Celery's chord", seconds["ours"], seconds["peer"], "s", 0.9)
        sent = {name: count_commands(server, way)["sent"] / num_tasks for name, way in ways.items()}
    yield Figure("commands per task of submit(chord)", "Celery's chord", sent["ours"], sent["peer"], "", 14, "alone")


def ways_to_run(server: RedisServer, num_tasks: int) -> dict[str, Way]:
    """Return the ways to run a chord until its body has the results."""
    module = load_app(server)

    def ours() -> object:
        header = (module.tracked_page.s(number) for number in range(num_tasks))
        return module.states.submit(chord(header, module.collected.s(num_tasks)))

    def peer() -> object:
        header = (module.page.s(number) for number in range(num_tasks))
        return chord(header, module.collected.s(num_tasks))()

    return {"ours": until_ended(server, num_tasks, ours), "peer": until_ended(server, num_tasks, peer)}
