"""Between rows and values."""

from __future__ import annotations

import json
import uuid
from typing import Any

from ..job import Job, Outcome


def as_job(row: Any) -> Job:
    """A row that names the columns of a job, as a value."""
    return Job(
        id=row.id,
        task=row.task,
        queue=row.queue,
        priority=row.priority,
        state=row.state,
        args=row.args,
        headers=row.headers,
        tags=tuple(row.tags),
        execute_after=row.execute_after,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        crashes=row.crashes,
        max_crashes=row.max_crashes,
        alone=row.alone,
        claim=row.claim,
        worker=row.worker,
        created_at=row.created_at,
        claimed_at=row.claimed_at,
        errors=tuple(row.errors),
        finished_at=getattr(row, "finished_at", None),
        result=getattr(row, "result", None),
    )


def as_claimed(row: tuple[Any, ...], claim: uuid.UUID, worker: uuid.UUID) -> Job:
    """A freshly claimed row, as a value: what the claimer knows is not sent back to it, nor is what is empty.

    The values come in the order of the statement: this is done for every job, and by name it takes thrice as long.
    """
    (job_id, task, queue, priority, args, headers, tags, execute_after, attempt, max_attempts, crashes, max_crashes,
     alone, created_at, claimed_at, errors, _) = row  # fmt: skip
    return Job(
        job_id, task, queue, priority, "running", args, headers or {}, tuple(tags) if tags else (), execute_after,
        attempt, max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at,
        tuple(errors) if errors else (),
    )  # fmt: skip


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error_text(outcome: Outcome) -> str | None:
    """The entry for the job's error history, as JSON."""
    return None if outcome.error is None else as_json(outcome.error)
