"""What state a cell ends with, by pool (rule R13): real workers, real processes."""

import pytest
from celery import chain

from celery_statemanager import Status
from celery_statemanager.integration.binding import Binding

PATIENCE = 30


def ended(job, task_index=0, tag="work"):
    job.wait(PATIENCE)
    state = job.get_state(tag, task_index)
    return state.status, state.message


def test_success_is_finished_and_keeps_message_and_payload(tracked, submit):
    job = submit([tracked.succeed.s(3)])
    assert ended(job) == (Status.FINISHED, "half way")
    state = job.get_state("work", 0)
    assert (state.payload, state.attempt, state.version) == ({"value": 3}, 1, 3)


def test_every_state_of_an_execution_is_seen_in_order(tracked, submit):
    job = submit([tracked.succeed.s(3)])
    with job.subscribe(until_settled=True) as events:
        seen = [event.state for event in events]
    assert [state.version for state in seen] == sorted({state.version for state in seen})
    assert seen[-1].finished


def test_progress_ends_at_its_total(tracked, submit):
    job = submit([tracked.advance.s(4)])
    assert ended(job) == (Status.FINISHED, "step 4")
    assert job.get_state("work", 0).payload == {"progress": {"done": 4, "total": 4}}


def test_an_exception_is_failed_with_its_text(tracked, submit):
    assert ended(submit([tracked.fail.s("broken")])) == (Status.FAILED, "ValueError: broken")


def test_a_state_error_is_its_own_code(tracked, submit):
    assert ended(submit([tracked.fail_with.s(-42, "disk full")])) == (-42, "disk full")


def test_wrong_arguments_are_failed(tracked, submit):
    status, message = ended(submit([tracked.one_argument.s(1, 2, 3)]))
    assert status == Status.FAILED
    assert message.startswith("TypeError: ")


def test_a_retry_goes_back_to_started_and_the_next_begin_is_counted(tracked, submit, key):
    job = submit([tracked.retry_then_succeed.s(key, 2)])
    assert ended(job)[0] == Status.FINISHED
    assert tracked.notes(key) == ["1", "2", "3"]
    assert job.get_state("work", 0).attempt == 3


def test_exhausted_retries_are_failed_with_the_first_cause(tracked, submit, key):
    assert ended(submit([tracked.autoretry.s(key)])) == (Status.FAILED, "OSError: always")
    assert tracked.notes(key) == ["1", "2", "3"]


def test_a_negative_status_of_the_application_survives_its_return(tracked, submit):
    assert ended(submit([tracked.write_then.s(-50, "return")])) == (-50, "my own word")


def test_a_negative_status_of_the_application_survives_an_exception(tracked, submit):
    assert ended(submit([tracked.write_then.s(-50, "raise")])) == (-50, "my own word")


def test_a_body_that_wrote_finished_and_raised_is_failed(tracked, submit):
    job = submit([tracked.write_then.s(int(Status.FINISHED), "raise")])
    assert ended(job) == (Status.FAILED, "ValueError: after all")


def test_ignore_and_reject_are_rejected(tracked, submit):
    job = submit([tracked.give_up.s("ignore"), tracked.give_up.s("reject")])
    assert ended(job, 0) == (Status.REJECTED, "ignored: not mine")
    assert ended(job, 1) == (Status.REJECTED, "rejected: unwanted")


def test_a_replacement_takes_over_the_cell(tracked, submit, key):
    job = submit([tracked.replaced.s(key)])
    assert ended(job)[0] == Status.FINISHED
    assert tracked.notes(key) == ["old 1", "new 2 work"]


def test_a_chain_runs_its_stages_in_one_row(tracked, submit):
    job = submit([chain(tracked.succeed.s(1), tracked.second.s())])
    job.wait(PATIENCE)
    assert {state.tag: state.status for state in job.list_states()} == dict.fromkeys(
        ("work", "second"), Status.FINISHED
    )


def test_a_failed_stage_gives_its_status_to_the_later_ones(tracked, submit):
    job = submit([chain(tracked.fail_with.s(-42, "disk full"), tracked.second.s())])
    assert ended(job, tag="second") == (-42, "not run: stage 'work' failed: disk full")


def test_plain_tasks_are_tracked(tracked, submit, key):
    job = submit([tracked.plain.s(key)])
    assert ended(job, tag="plain") == (Status.FINISHED, "from a plain function")
    assert tracked.notes(key) == ["0"]


def test_a_manager_of_a_task_is_bound_by_its_attempt(tracked, submit):
    job = submit([tracked.finish_by_manager.s()])
    assert ended(job) == (Status.FINISHED, "by hand")
    assert job.get_state("extra", 0).status == 5


def test_expired_before_it_began(tracked, submit, pool):
    if pool == "threads":
        pytest.skip("the threads pool hands a message to its executor at once: it never expires there")
    job = submit([tracked.succeed.s().set(expires=-1)])
    assert ended(job) == (Status.EXPIRED, "expired before it began")


def test_revoked_before_it_began(tracked, submit, pool):
    job = submit([tracked.succeed.s().set(countdown=3600)])
    binding = Binding(job.manager.ref, 0, "work")
    told = tracked.app.control.revoke(
        binding.celery_task_id, reply=True, timeout=PATIENCE, limit=1, destination=[f"{pool}@test"]
    )
    assert told
    binding.bind(tracked.succeed.s().set(queue=pool)).apply_async()  # one with a countdown is looked at when it is due
    assert ended(job) == (Status.REVOKED, "revoked")


def test_a_soft_time_limit_is_timed_out(tracked, submit, pool):
    if pool != "prefork":
        pytest.skip("only the prefork pool has soft time limits")
    assert ended(submit([tracked.too_slow.s()])) == (Status.TIMED_OUT, "SoftTimeLimitExceeded: SoftTimeLimitExceeded()")


def test_what_only_the_main_process_sees(tracked, submit, pool, key, eventually):
    if pool != "prefork":
        pytest.skip("only the prefork pool has children to limit and to lose")
    job = submit([tracked.hang.s(), tracked.die.s("kill"), tracked.die.s("exit"), tracked.gate.s(key)])
    assert ended_cell(job, 0) == (Status.TIMED_OUT, "TimeLimitExceeded: TimeLimitExceeded(1,)")
    assert ended_cell(job, 1)[0] == Status.LOST
    assert ended_cell(job, 2)[0] == Status.LOST
    eventually(lambda: tracked.notes(key))
    tracked.app.control.revoke(Binding(job.manager.ref, 3, "work").celery_task_id, terminate=True)
    assert ended(job, 3) == (Status.REVOKED, "revoked")
    assert job.get_state("work", 3).attempt == 1


def ended_cell(job, task_index):
    with job.subscribe("work", task_index) as events:
        for event in iter(lambda: events.get(PATIENCE), None):
            if event.state.terminal:
                return event.state.status, event.state.message
    return None


def test_a_barrier_inside_a_task_holds_until_all_are_there_and_warns(tracked, submit, setting, pool, key, eventually):
    if pool == "solo":
        pytest.skip("a solo worker runs one task at a time: a barrier there never opens")
    job = submit([tracked.wait_for_all.s(30), tracked.gate.s(key)])
    eventually(lambda: "those it waits for never begin" in setting.worker(pool).log.read_text())
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 2


def test_untracked_runs_touch_no_store(tracked, pool, key, eventually):
    tracked.untracked_state.apply_async(args=(key,), queue=pool)
    assert eventually(lambda: tracked.notes(key)) == ["False None None None"]
