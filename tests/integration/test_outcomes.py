"""The states that one execution writes (rule R13). ``test_matrix`` covers the last one of each outcome."""

import pytest
from celery import chain

from celery_statemanager import Status

PATIENCE = 30


def end_of(job, task_index=0, tag="work"):
    job.wait(PATIENCE)
    state = job.get_state(tag, task_index)
    return state.status, state.message


def test_a_finished_cell_keeps_message_and_payload(tracked, submit):
    job = submit([tracked.succeed.s(3)])
    assert end_of(job) == (Status.FINISHED, "half way")
    state = job.get_state("work", 0)
    assert (state.payload, state.attempt, state.version) == ({"value": 3}, 1, 3)


def test_a_subscription_yields_the_states_of_an_execution_in_order(tracked, submit):
    job = submit([tracked.succeed.s(3)])
    with job.subscribe(until_settled=True) as events:
        seen = [event.state for event in events]
    assert [state.version for state in seen] == sorted({state.version for state in seen})
    assert seen[-1].finished


def test_a_finished_task_sets_progress_to_its_total(tracked, submit):
    job = submit([tracked.advance.s(4)])
    assert end_of(job) == (Status.FINISHED, "step 4")
    assert job.get_state("work", 0).payload == {"progress": {"done": 4, "total": 4}}


def test_a_task_with_wrong_arguments_fails(tracked, submit):
    status, message = end_of(submit([tracked.one_argument.s(1, 2, 3)]))
    assert status == Status.FAILED
    assert message.startswith("TypeError: ")


def test_a_replacement_runs_in_the_same_cell(tracked, submit, key):
    job = submit([tracked.replaced.s(key)])
    assert end_of(job)[0] == Status.FINISHED
    assert tracked.notes(key) == ["old 1", "new 2 work"]


def test_a_chain_runs_its_stages_in_one_row(tracked, submit):
    job = submit([chain(tracked.succeed.s(1), tracked.second.s())])
    job.wait(PATIENCE)
    assert {state.tag: state.status for state in job.list_states()} == dict.fromkeys(
        ("work", "second"), Status.FINISHED
    )


def test_later_stages_take_the_status_of_a_failed_stage(tracked, submit):
    job = submit([chain(tracked.fail_with.s(-42, "disk full"), tracked.second.s())])
    assert end_of(job, tag="second") == (-42, "not run: stage 'work' failed: disk full")


def test_plain_tasks_are_tracked(tracked, submit, key):
    job = submit([tracked.plain.s(key)])
    assert end_of(job, tag="plain") == (Status.FINISHED, "from a plain function")
    assert tracked.notes(key) == ["0"]


def test_writes_of_a_tasks_manager_belong_to_its_attempt(tracked, submit):
    job = submit([tracked.finish_by_manager.s()])
    assert end_of(job) == (Status.FINISHED, "by hand")
    assert job.get_state("extra", 0).status == 5


def test_a_barrier_in_a_task_waits_for_all_rows_and_warns(tracked, submit, setting, pool, key, eventually):
    if pool == "solo":
        pytest.skip("a solo worker runs one task at a time, so a barrier cannot complete")
    job = submit([tracked.wait_for_all.s(30), tracked.gate.s(key)])
    eventually(lambda: "those it waits for never begin" in setting.worker(pool).log.read_text())
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 2


def test_an_untracked_run_does_not_use_the_store(tracked, pool, key, eventually):
    tracked.untracked_state.apply_async(args=(key,), queue=pool)
    assert eventually(lambda: tracked.notes(key)) == ["False None None None"]
