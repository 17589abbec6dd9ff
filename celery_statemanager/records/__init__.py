"""What stores keep and exchange with the layers above: jobs, cells, and the requests on them. Pure values.

Times are integer microseconds since the epoch, UTC, from the store's clock. Payloads are JSON text.
"""

from celery_statemanager.records.cells import (
    FRACTION_UNIT,
    Batch,
    Cell,
    Column,
    Delivery,
    OpenAttempt,
    StoredCell,
    Tally,
    WorkerRecord,
)
from celery_statemanager.records.jobs import (
    CALLBACK_ROW,
    LATCHES,
    Cancellation,
    JobKey,
    JobRecord,
    JobRef,
    Latch,
    Page,
    job_key,
    new_incarnation,
    new_job,
    to_datetime,
)
from celery_statemanager.records.outbox import (
    Claim,
    Claimed,
    ClaimRequest,
    Flow,
    OutboxState,
    Returned,
)
from celery_statemanager.records.requests import (
    Begin,
    BeginReply,
    Verdict,
    When,
    Write,
    WriteReply,
    new_event_id,
)

__all__ = [
    "CALLBACK_ROW",
    "to_datetime",
    "JobKey",
    "job_key",
    "JobRef",
    "Latch",
    "LATCHES",
    "Cancellation",
    "Claim",
    "Claimed",
    "ClaimRequest",
    "Flow",
    "OutboxState",
    "Returned",
    "JobRecord",
    "new_job",
    "new_incarnation",
    "Page",
    "Delivery",
    "Cell",
    "StoredCell",
    "OpenAttempt",
    "WorkerRecord",
    "Tally",
    "FRACTION_UNIT",
    "Column",
    "Batch",
    "new_event_id",
    "When",
    "Begin",
    "Write",
    "Verdict",
    "BeginReply",
    "WriteReply",
]
