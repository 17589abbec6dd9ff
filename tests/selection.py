"""Which tests are run when: on the Firestore emulator one call takes as long as a whole test does on other stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SMOKE = {
    "test_versions_count_the_writes_of_each_cell_from_one",
    "test_repeating_the_current_event_id_changes_nothing_and_gives_the_state",
    "test_ties_go_to_the_lowest_row_then_to_the_tag_first_in_code_points",
    "test_a_summary_counts_cells_and_names_rows",
    "test_what_exists_is_replayed_oldest_first_then_changes_come_live",
    "test_one_that_is_forgotten_leaves_no_thread",
    "test_a_barrier_waits_for_the_slowest_row",
    "test_job_and_token_are_a_pair_not_a_joined_name",
    "test_a_straggler_of_an_older_incarnation_does_not_meet_its_successor",
    "test_threads_share_a_manager",
    "test_each_latch_falls_once_though_threads_end_the_last_cells_at_once",
    "test_a_failure_for_good_gives_later_stages_its_status_in_the_same_step",
    "test_writes_of_an_older_attempt_are_refused",
    "test_success_and_settling_fall_with_the_last_planned_cell",
    "test_open_attempts_that_have_an_owner_are_listed",
    "test_a_cancelled_job_settles_with_the_end_of_the_last_pending_cell",
    "test_another_programs_job_gains_an_incarnation_and_keeps_its_states",
    "test_a_killed_migration_is_resumed",
}
"""Of the tests that run over every store, one for each rule and resource: these meet Firestore in ``make test``."""

SMOKE_OVER_REST = {
    "test_writes_of_an_older_attempt_are_refused",
    "test_success_and_settling_fall_with_the_last_planned_cell",
    "test_it_ends_when_the_job_is_deleted_even_while_waiting",
}
"""Those that meet Firestore over REST without ``--full``."""


def asked_for(item: pytest.Function, option: Callable[[str], bool]) -> bool:
    """Whether a test is run."""
    if option("--full"):
        return True
    if item.get_closest_marker("full") or (item.get_closest_marker("firestore") and not option("--firestore")):
        return False
    factory = item.callspec.params.get("store_factory") if hasattr(item, "callspec") else None
    if factory == "firestore-rest":
        return item.originalname in SMOKE_OVER_REST
    return factory != "firestore" or option("--firestore") or item.originalname in SMOKE
