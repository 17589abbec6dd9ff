"""Redelivered messages of plain tasks. These tasks have no veto, so the main process drops outdated messages."""

from __future__ import annotations

import logging
from typing import Any

from celery_statemanager.errors import StateManagerError
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.task.run import vetoes
from celery_statemanager.records import Cell, Delivery

logger = logging.getLogger(__name__)


def drop_if_outdated(tracker: Tracker, binding: Binding, request: Any) -> None:
    """Drop a message that the broker delivers again if a later publication exists or the cell has ended.

    Redis delivers a message of a dead worker again after its visibility timeout, when a sweep has already published it
    again. The store is read only for redelivered messages.
    """
    if vetoes(request.task) or not (request.delivery_info or {}).get("redelivered"):
        return
    try:
        cell = tracker.store.get_cell(binding.ref, binding.tag, binding.task_index)
    except StateManagerError as error:
        logger.info("cannot check if a redelivered message is outdated, it runs: %s", error, extra=binding.log_extra)
        return
    if cell is not None and _is_outdated(cell, binding.delivery(request.request_dict)):
        logger.info("not run: %s was published again or has ended", binding.celery_task_id, extra=binding.log_extra)
        request.acknowledge()
        request._already_revoked = True  # Celery has no public way to drop one delivery; it checks this before it runs


def _is_outdated(cell: Cell, delivery: Delivery) -> bool:
    has_ended = cell.final and cell.has_run
    return delivery < cell.delivery or cell.succeeded or (has_ended and delivery == cell.delivery)
