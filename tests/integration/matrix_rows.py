"""The rows of the matrix of outcomes."""

from matrix import WORKERS, Outcome, only, same

from celery_statemanager import Status

LOST = "lost with its worker .*"
STOPPED = "stopped with its worker .*"
EXITED = "(WorkerLostError|SystemExit): .*"
INTERRUPTED = "(WorkerLostError|KeyboardInterrupt).*"
DONE = int(Status.FINISHED)

OUTCOMES = [
    Outcome("returns", "act_early", "succeed", same(DONE, "half way", writes=3)),
    Outcome("raises", "act_early", "fail", same(Status.FAILED, "ValueError: broken")),
    Outcome(
        "raises what cannot be pickled", "act_early", "fail_unpicklable", same(Status.FAILED, "Unpicklable: .*broken.*")
    ),
    Outcome("raises `StateError`", "act_early", "fail_with_a_code", same(-42, "disk full")),
    Outcome("`before_start` raises", "act_early", "not_start", same(Status.FAILED, "OSError: not ready")),
    Outcome(
        "its result cannot be encoded",
        "act_stored",
        "return_an_object",
        same(Status.FAILED, "EncodeError: .*", except_for=only("eager", DONE, None)),
    ),
    Outcome("wrote -50, returns", "act_early", "write_negative", same(-50, "out of quota", writes=3)),
    Outcome("wrote -50, raises", "act_early", "write_negative_and_fail", same(-50, "out of quota", writes=3)),
    Outcome(
        "wrote FINISHED, raises", "act_early", "finish_and_fail", same(Status.FAILED, "ValueError: broken", writes=3)
    ),
    Outcome("retries twice, returns", "act_early", "retry_twice", same(DONE, None, 3, 6)),
    Outcome("retries with a delay, returns", "act_early", "retry_later", same(DONE, None, 2, 4)),
    Outcome(
        "retries, and the retry begins before this run ends",
        "act_early",
        "retry_ahead",
        only("prefork threads gevent", DONE, None, 2, 3),
        worker_end="self_inflicted",
    ),
    Outcome(
        "runs out of retries", "act_early", "retry_forever", same(Status.FAILED, "MaxRetriesExceededError: .*", 3, 6)
    ),
    Outcome(
        "runs out of retries with a cause",
        "act_early",
        "retry_forever_with_a_cause",
        same(Status.FAILED, "OSError: never", 3, 6),
    ),
    Outcome("`autoretry_for` runs out", "act_autoretried", "fail", same(Status.FAILED, "ValueError: broken", 3, 6)),
    Outcome("raises `Ignore`", "act_early", "ignore", same(Status.REJECTED, "ignored: not mine")),
    Outcome("raises `Reject(requeue=False)`", "act_early", "reject", same(Status.REJECTED, "rejected: unwanted")),
    Outcome(
        "raises `Reject(requeue=True)`, acked late",
        "act_late",
        "requeue_first",
        same(DONE, None, 2, 4, except_for=only("eager", Status.REJECTED, "rejected: .*")),
    ),
    Outcome(
        "raises `Reject(requeue=True)`, acked early", "act_early", "requeue", same(Status.REJECTED, "rejected: .*")
    ),
    Outcome("`self.replace`", "act_early", "replace", same(DONE, None, 2, 4)),
    Outcome(
        "soft time limit",
        "act_early",
        "take_too_long",
        only("prefork", Status.TIMED_OUT, "SoftTimeLimitExceeded: .*") | only("threads solo gevent", DONE, None),
        {"soft_time_limit": 1},
    ),
    Outcome(
        "soft time limit, caught",
        "act_early",
        "catch_the_time_limit",
        only("prefork", DONE, "cut short", writes=3) | only("threads solo gevent", DONE, None),
        {"soft_time_limit": 1},
    ),
    Outcome(
        "hard time limit",
        "act_early",
        "take_too_long",
        only("prefork gevent", Status.TIMED_OUT, "TimeLimitExceeded: .*") | only("threads solo", DONE, None),
        {"time_limit": 1},
        older=only("gevent", Status.LOST, LOST),
    ),
    Outcome(
        "hard time limit, `acks_on_failure_or_timeout=False`",
        "act_again",
        "take_too_long",
        only("prefork gevent", DONE, None, 2, 4) | only("threads solo", DONE, None),
        {"time_limit": 1},
    ),
    Outcome("process killed", "act_early", "kill_itself_first", only("prefork", Status.LOST, "WorkerLostError: .*")),
    Outcome(
        "process killed, acked late",
        "act_late",
        "kill_itself_first",
        only("prefork", Status.LOST, "WorkerLostError: .*"),
    ),
    Outcome(
        "process killed, `reject_on_worker_lost`", "act_again", "kill_itself_first", only("prefork", DONE, None, 2, 4)
    ),
    Outcome(
        "process killed, `retry_on_worker_lost`",
        "act_retried",
        "kill_itself_first",
        only("prefork", DONE, None, 2, 4),
        older=only("prefork", Status.LOST, "WorkerLostError: .*"),
    ),
    Outcome("`os._exit`", "act_early", "exit_at_once_first", only("prefork", Status.LOST, "WorkerLostError: .*")),
    Outcome(
        "revoked before it is received",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.REVOKED, "revoked", 0, 1),
        act="revoke_and_send",
    ),
    Outcome(
        "revoked after it is received",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.REVOKED, "revoked", 0, 1),
        {"countdown": 6},
        act="revoke",
    ),
    Outcome(
        "revoked with `terminate` while it runs",
        "act_early",
        "wait",
        only("prefork gevent", Status.REVOKED, "revoked") | only("threads solo", DONE, None),
        act="terminate",
    ),
    Outcome(
        "revoked with SIGKILL while it runs, acked late",
        "act_late",
        "wait",
        only("prefork", Status.REVOKED, "revoked"),
        act="terminate_by_kill",
    ),
    Outcome(
        "expired before it is received",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.EXPIRED, "expired before it began", 0, 1),
        {"expires": -1},
    ),
    Outcome(
        "expired after it is received",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.EXPIRED, "expired before it began", 0, 1),
        {"countdown": 1, "expires": 0.5},
    ),
    Outcome(
        "unknown task",
        "act_unknown",
        "succeed",
        only(
            "prefork threads solo gevent", Status.REJECTED, "task 'act_unknown' is not registered in the worker", 0, 1
        ),
    ),
    Outcome(
        "a message that is not a valid task message",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.REJECTED, "rejected by the worker: .*", 0, 1),
        {"headers": {"eta": "never"}},
    ),
    Outcome(
        "arguments in a format that is not accepted",
        "act_early",
        "succeed",
        only("prefork threads solo gevent", Status.REJECTED, "rejected by the worker: ContentDisallowed: .*", 0, 1),
        {"serializer": "pickle"},
    ),
    Outcome("`sys.exit`", "act_early", "exit_first", only("prefork threads gevent", Status.LOST, EXITED)),
    Outcome("`sys.exit`, acked late", "act_late", "exit_first", only("prefork threads gevent", Status.LOST, EXITED)),
    Outcome(
        "`sys.exit`, `reject_on_worker_lost`",
        "act_again",
        "exit_first",
        only("prefork threads gevent", DONE, None, 2, 4),
        older=only("prefork threads gevent", Status.LOST, EXITED),
    ),
    Outcome(
        "raises `KeyboardInterrupt`, acked late",
        "act_late",
        "interrupt",
        only("prefork threads gevent", Status.LOST, INTERRUPTED),
    ),
    Outcome(
        "raises `asyncio.CancelledError`",
        "act_early",
        "cancel",
        only("prefork threads gevent", Status.FAILED, "CancelledError: away"),
    ),
    Outcome(
        "raises `asyncio.CancelledError`, acked late",
        "act_late",
        "cancel",
        only("prefork threads gevent", Status.FAILED, "CancelledError: away"),
    ),
    Outcome(
        "raises a `BaseException` of its own, acked late",
        "act_late",
        "abandon",
        only("prefork threads gevent", Status.FAILED, "Abandoned: half way"),
    ),
    Outcome(
        "raises `GreenletExit`, acked late",
        "act_late",
        "leave_the_greenlet",
        only("prefork threads gevent", Status.FAILED, "GreenletExit: on its own"),
    ),
    Outcome(
        "raises a `gevent.Timeout` of its own, with a time limit",
        "act_late",
        "time_out_itself",
        only("threads gevent", Status.FAILED, "Timeout: 0.01 seconds"),
        {"time_limit": 60},
    ),
    Outcome(
        "raises `MemoryError`",
        "act_early",
        "raise_memory_error",
        only(WORKERS, Status.FAILED, "MemoryError: none left"),
        worker_end="self_inflicted",
    ),
    Outcome(
        "`sys.exit`, acked late, in solo",
        "act_late",
        "exit_first",
        only("solo", Status.LOST, EXITED),
        worker_end="self_inflicted",
    ),
    Outcome(
        "raises `asyncio.CancelledError`, acked late, in solo",
        "act_late",
        "cancel",
        only("solo", Status.FAILED, "CancelledError: away"),
        worker_end="self_inflicted",
    ),
    Outcome("worker: warm shutdown (SIGTERM)", "act_early", "wait", only(WORKERS, DONE, None), worker_end="warm"),
    Outcome(
        "worker: soft shutdown, ends in time",
        "act_early",
        "wait",
        only("prefork threads gevent", DONE, None),
        worker_end="soft",
    ),
    Outcome(
        "worker: soft shutdown, too slow",
        "act_early",
        "wait_first",
        only("prefork", Status.LOST, STOPPED),
        worker_end="soft_end",
    ),
    Outcome(
        "worker: soft shutdown, too slow, acked late",
        "act_late",
        "wait_first",
        only("prefork", DONE, None, 2, 4),
        worker_end="soft_end",
    ),
    Outcome(
        "worker: cold shutdown (SIGQUIT)",
        "act_early",
        "wait_first",
        only("prefork", Status.LOST, STOPPED),
        worker_end="cold",
    ),
    Outcome(
        "worker: cold shutdown, acked late",
        "act_late",
        "wait_first",
        only("prefork", DONE, None, 2, 4),
        worker_end="cold",
    ),
    Outcome("worker: killed", "act_early", "wait_first", only(WORKERS, Status.LOST, LOST), worker_end="killed"),
    Outcome(
        "worker: killed, acked late", "act_late", "wait_first", only(WORKERS, DONE, None, 2, 4), worker_end="killed"
    ),
]
