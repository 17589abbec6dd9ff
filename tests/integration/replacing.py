"""An app whose tasks replace themselves with every kind of canvas. The worker and the tests import it."""

import json
import os
import time
from pathlib import Path

from celery import Celery, chain, chord, group
from celery.canvas import Signature
from celery.exceptions import Ignore, Reject

from celery_statemanager import StatefulTask, StateManager, Status

QUEUE = "replacing"

app = Celery("replacing", broker=os.environ.get("TRACKED_BROKER", "memory://"))
app.conf.update(
    result_backend=os.environ.get("TRACKED_BROKER", "cache+memory://"),
    statemanager_store_url=os.environ.get("TRACKED_STORE", "memory://"),
    task_always_eager="TRACKED_BROKER" not in os.environ,
    task_protocol=int(os.environ.get("TRACKED_PROTOCOL", "2")),
    task_default_queue=QUEUE,
    statemanager_lease=6.0,
    statemanager_sweep_interval=1.5,
    broker_connection_retry_on_startup=True,
)
states = StateManager(app)


@app.task(shared=False)
def add(x, y):
    return x + y


@app.task(shared=False)
def total(numbers):
    return sum(numbers)


@app.task(shared=False, base=StatefulTask, bind=True)
def stateful_add(self, x, y):
    return x + y


@app.task(shared=False, base=StatefulTask, bind=True)
def stateful_total(self, numbers):
    return sum(numbers)


def as_json(signature):
    return json.loads(json.dumps(signature))


def read(signature):
    return Signature.from_dict(as_json(signature), app=app)


def numbers():
    return [add.s(1, 2), add.s(3, 4)]


def stateful_numbers():
    return [stateful_add.s(1, 2), stateful_add.s(3, 4)]


def split():
    return chain(add.s(1, 2), group(add.s(1), add.s(2)))


PAIRS = [(1, 2), (3, 4), (5, 6)]

CANVASES = {
    "signature": (lambda: add.s(1, 2), 3),
    "stateful signature": (lambda: stateful_add.s(1, 2), 3),
    "chain": (lambda: chain(add.s(1, 2), add.s(3)), 6),
    "chain of stateful tasks": (lambda: chain(stateful_add.s(1, 2), stateful_add.s(3)), 6),
    "chain of one": (lambda: chain(add.s(1, 2)), 3),
    "group": (lambda: group(numbers()), [3, 7]),
    "group of stateful tasks": (lambda: group(stateful_numbers()), [3, 7]),
    "group of one": (lambda: group([add.s(1, 2)]), [3]),
    "empty group": (lambda: group([]), []),
    "group of chains": (lambda: group(chain(add.s(1, 2), add.s(1)), chain(add.s(1, 2), add.s(2))), [4, 5]),
    "group of groups": (lambda: group(group(add.s(1, 2), add.s(1, 2)), add.s(1, 2)), [3, 3, 3]),
    "group of chords": (lambda: group(chord(numbers(), total.s()), add.s(1, 2)), [10, 3]),
    "chord": (lambda: chord(numbers(), total.s()), 10),
    "chord of stateful tasks": (lambda: chord(stateful_numbers(), stateful_total.s()), 10),
    "chord of a group": (lambda: chord(group(numbers()), total.s()), 10),
    "chord of one": (lambda: chord([add.s(1, 2)], total.s()), 3),
    "chord with a chain as body": (lambda: chord(numbers(), chain(total.s(), add.s(1))), 11),
    "chord with a group as body": (lambda: chord(numbers(), group(total.s(), total.s())), [10, 10]),
    "chord with a chord as body": (lambda: chord(numbers(), chord([total.s(), total.s()], total.s())), 20),
    "chord with a body that ends in a group": (
        lambda: chord(numbers(), chain(total.s(), group(add.s(1), add.s(2)))),
        [11, 12],
    ),
    "chain that ends in a group": (split, [4, 5]),
    "chain with a group inside": (lambda: chain(split(), total.s(), add.s(1)), 10),
    "chain that ends in a chord": (lambda: chain(add.s(1, 2), chord([add.s(1), add.s(2)], total.s())), 9),
    "chain that ends in a chord with a group as body": (
        lambda: chain(add.s(1, 2), chord([add.s(1), add.s(2)], group(total.s(), total.s()))),
        [9, 9],
    ),
    "map": (lambda: total.map(PAIRS), [3, 7, 11]),
    "starmap": (lambda: add.starmap(PAIRS), [3, 7, 11]),
    "chunks": (lambda: add.chunks(PAIRS, 2), [[3, 7], [11]]),
    "group of chunks": (lambda: add.chunks(PAIRS, 2).group(), [[3, 7], [11]]),
    "JSON of a signature": (lambda: as_json(add.s(1, 2)), 3),
    "JSON of a group": (lambda: as_json(group(numbers())), [3, 7]),
    "JSON of a chord": (lambda: as_json(chord(numbers(), total.s())), 10),
    "JSON of a map": (lambda: as_json(total.map(PAIRS)), [3, 7, 11]),
    "JSON of chunks": (lambda: as_json(add.chunks(PAIRS, 2)), [[3, 7], [11]]),
    "group read from JSON": (lambda: read(group(numbers())), [3, 7]),
    "chord read from JSON": (lambda: read(chord(numbers(), total.s())), 10),
    "chain read from JSON": (lambda: read(chain(split(), total.s())), 9),
}
"""The replacement of a task, and its result."""


@app.task(shared=False)
def fail(*args):
    raise ValueError("of the replacement")


FAILING = {
    "failing signature": lambda: fail.s(),
    "failing chain": lambda: chain(fail.s(), add.s(1), add.s(1)),
    "failing chain that ends in a group": lambda: chain(fail.s(), group(add.s(1), add.s(2))),
    "failing chain with a group inside": lambda: chain(add.s(1, 2), group(fail.s(), add.s(1)), total.s()),
    "failing group": lambda: group(fail.s(), add.s(1, 2), fail.s()),
    "failing group of chains": lambda: group(chain(fail.s(), add.s(1)), add.s(1, 2)),
    "failing chord": lambda: chord([fail.s(), add.s(1, 2)], total.s()),
    "failing chord with a chain as body": lambda: chord([add.s(1, 2), fail.s()], chain(total.s(), add.s(1))),
    "failing chord with a body that fails": lambda: chord(numbers(), chain(fail.s(), add.s(1))),
}
"""Replacements in which a task fails."""


@app.task(shared=False)
def ignore(*args):
    raise Ignore


@app.task(shared=False)
def reject(*args):
    raise Reject("no", requeue=False)


@app.task(shared=False)
def leave(*args):
    os._exit(3)


@app.task(shared=False, time_limit=0.5)
def linger(*args):
    time.sleep(60)


@app.task(shared=False, bind=True)
def hand_on(self, name):
    raise self.replace(PLACES[name](ignore.si()))


@app.task(shared=False, bind=True, max_retries=2)
def retry(self, wanted, *args):
    if self.request.retries < wanted:
        raise self.retry(countdown=0)
    return 1


@app.task(shared=False)
def pause(key):
    """Sleep in the first of the executions with this key."""
    ran = Path(os.environ["TRACKED_HOME"], key)
    with ran.open("a") as file:
        file.write("x")
    if ran.stat().st_size == 1:
        time.sleep(60)
    return 1


@app.task(shared=False, on_lost="requeue")
def requeued_pause(key):
    return pause.run(key)


PLACES = {
    "first of a chain": lambda task: chain(task, add.si(1, 1)),
    "middle of a chain": lambda task: chain(add.si(1, 1), task, add.si(1, 1)),
    "group": lambda task: group(add.si(1, 1), task),
    "header of a chord": lambda task: chord([task, add.si(1, 1)], total.si([1])),
    "chain in a group": lambda task: chain(add.si(1, 1), group(chain(task, add.si(1, 1)), add.si(1, 1)), total.si([1])),
}
"""Places in a replacement from which a task does not end the cell itself."""

ENDINGS = {
    "ignored": (lambda: ignore.si(), Status.REJECTED, "ignored (in a task of its replacement)"),
    "rejected": (lambda: reject.si(), Status.REJECTED, "rejected: no (in a task of its replacement)"),
    "expired": (
        lambda: add.si(1, 1).set(expires="2020-01-01T00:00:00+00:00"),
        Status.EXPIRED,
        "expired before it began (in a task of its replacement)",
    ),
    "unknown": (
        lambda: app.signature("unknown", immutable=True),
        Status.REJECTED,
        "task 'unknown' is not registered in the worker (in a task of its replacement)",
    ),
    "exited": (lambda: leave.si(), Status.LOST, "WorkerLostError: "),
    "too long": (lambda: linger.si(), Status.TIMED_OUT, "TimeLimitExceeded: "),
    "retried in vain": (lambda: retry.si(9), Status.FAILED, "MaxRetriesExceededError: "),
    "replaced in vain": (
        lambda: hand_on.si("chain in a group"),
        Status.REJECTED,
        "ignored (in a task of its replacement)",
    ),
}
"""Tasks without a result, and the state of the row that waits for one of them."""

GOOD = {"retried": lambda: retry.si(2), "replaced": lambda: replacing_inner.si()}


@app.task(shared=False, bind=True)
def replacing_inner(self):
    raise self.replace(chain(add.si(1, 1), group(retry.si(1), add.si(1, 1)), total.si([1])))


@app.task(shared=False, base=StatefulTask, bind=True, tag="work")
def split_up(self, place, ending):
    make = GOOD[ending] if ending in GOOD else ENDINGS[ending][0]
    raise self.replace(PLACES[place](make()))


@app.task(shared=False, bind=True)
def plain_split_up(self, place, ending):
    split_up.run.__func__(self, place, ending)


@app.task(shared=False, base=StatefulTask, bind=True, tag="work")
def split_for(self, place, name, key):
    raise self.replace(PLACES[place](app.signature(name, (key,), immutable=True)))


CANVASES_AND_FAILING = {**{name: make for name, (make, _) in CANVASES.items()}, **FAILING}


@app.task(shared=False, base=StatefulTask, bind=True, tag="work")
def replaced(self, name):
    return self.replace(CANVASES_AND_FAILING[name]())


@app.task(shared=False, bind=True)
def plain_replaced(self, name):
    return self.replace(CANVASES_AND_FAILING[name]())


@app.task(shared=False, base=StatefulTask, bind=True, tag="work")
def replaced_twice(self, name):
    return self.replace(replaced.s(name))


@app.task(shared=False, base=StatefulTask, bind=True, tag="after")
def keep(self, result):
    """Write the result of the previous stage as payload."""
    self.state.set(50, payload={"result": result})
