"""Find the stage of a row whose message is due, and create that message."""

from __future__ import annotations

from dataclasses import replace

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from kombu.exceptions import ContentDisallowed

from celery_statemanager.integration.binding import HEADER, IMMUTABLE, Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.envelope import Envelope, from_json, with_headers, with_task_id
from celery_statemanager.integration.outbox.making import REJECTED, binding_in
from celery_statemanager.integration.outbox.values import MAX_BYTES, stage_value, with_value
from celery_statemanager.records import Cell, JobRef
from celery_statemanager.texts import describe


class Unpublishable(Exception):
    """Raised if the message that is due cannot be created. The text is the reason.

    Attributes:
        binding: the cell of the message.
    """

    def __init__(self, binding: Binding, reason: str) -> None:
        super().__init__(f"not published: {reason}")
        self.binding = binding


def due_stage(tracker: Tracker, ref: JobRef, stages: list[Envelope], row: int) -> tuple[int, Cell] | None:
    """Return the stage of a row whose message is due, and its cell; None if a stage runs or the row has ended.

    Raises: JobNotFound, StoreError.
    """
    for number, stage in enumerate(stages):
        cell = tracker.store.get_cell(ref, binding_in(stage).tag, row) or Cell()
        if not cell.succeeded:
            return (number, cell) if cell.is_due else None
    return None


def message_again(tracker: Tracker, ref: JobRef, stages: list[Envelope], number: int, cell: Cell) -> Envelope:
    """Return the message of a stage for a publication that may not be the first. Raises: Unpublishable; StoreError."""
    message = changed_message(stages[number], cell)
    if message is None:
        message, binding = stored_message(stages[number], cell), binding_in(stages[number])
        if number and binding_in(stages[number - 1]).next not in {None, IMMUTABLE}:
            value = stage_value(tracker.store, ref, binding.task_index)
            if value is None:
                raise Unpublishable(binding, f"the value of the previous stage has more than {MAX_BYTES:,} bytes")
            message = message_of(tracker.app, message, value)
    return numbered(tracker.app, message, cell)


def delivered_message(message: Envelope, cell: Cell) -> Envelope:
    """Return the message of the next delivery of a cell, without a value of the previous stage and without its number.

    Args:
        message: the stored message of the stage.

    Raises: Unpublishable.
    """
    return changed_message(message, cell) or stored_message(message, cell)


def changed_message(message: Envelope, cell: Cell) -> Envelope | None:
    """Return the message that a retry or a replacement has changed; None if the stored one is the same.

    Args:
        message: the stored message of the stage.

    Raises: Unpublishable – it was not kept.
    """
    kept = None if cell.kept is None else from_json(cell.kept)
    if kept is not None and "eta" not in kept:
        if "publish" not in kept:
            reason = "a retry or a replacement changed the message, which was too large to be kept"
            raise Unpublishable(binding_in(message), reason)
        return kept
    if cell.delivery.replacements:
        raise Unpublishable(binding_in(message), "its task was replaced, and the message of the new one was not kept")
    return None


def stored_message(message: Envelope, cell: Cell) -> Envelope:
    """Return the stored message of a stage as Celery's retry sends it, if its next delivery is a retry.

    It then has the eta of the retry instead of the delay of the first delivery.
    """
    if REJECTED in message or not cell.delivery.retries:
        return message
    later = {name: value for name, value in message.items() if name != "eta_after"}
    return with_headers(later, retries=cell.delivery.retries, eta=from_json(cell.kept)["eta"] if cell.kept else None)


def message_of(app: Celery, message: Envelope, value: str | None) -> Envelope:
    """Return the message of a stage, with the value of the previous stage if it takes one. Raises: Unpublishable."""
    if REJECTED in message or value is None:
        return message
    try:
        return with_value(app, message, value)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        text = f"the value of the previous stage cannot be put into its message: {describe(error)}"
        raise Unpublishable(binding_in(message), text) from error


def numbered(app: Celery, message: Envelope, cell: Cell) -> Envelope:
    """Return a message with the number of its next publication, and with the Celery task id of its generation."""
    if REJECTED in message or not cell.delivery.publication:
        return message
    earlier, (publication, replacements, _) = binding_in(message), cell.delivery
    binding = replace(earlier, publication=publication, replacements=replacements, generation=cell.generation)
    message = with_headers(message, **{HEADER: binding.to_header()})
    if binding.generation == earlier.generation:
        return message
    try:
        return with_task_id(app, message, binding.celery_task_id)
    except ContentDisallowed as error:
        raise Unpublishable(binding, f"its message cannot get a new id: {describe(error)}") from error
