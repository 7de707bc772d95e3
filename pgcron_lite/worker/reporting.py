"""Reports about jobs: one log line when a job ends, and the events.

Both are sent after the row was written, never before, so that they are true.
"""

from __future__ import annotations

import logging
from typing import Any

from ..events import Events
from ..job import Job
from .execute import Ended, one_line

logger = logging.getLogger("pgcron_lite.jobs")


class Reporter:
    """Logs the outcomes of jobs, sends the events, and counts lost outcomes."""

    def __init__(self, events: Events) -> None:
        self.lost = 0
        self._events = events

    def ended(self, ended: Ended, *, was_ours: bool) -> None:
        """Report a job whose outcome was written, or was dropped because the job was no longer ours."""
        job, outcome = ended.job, ended.outcome
        if not was_ours:
            return self._lost(ended)
        if outcome.state == "done":
            self._log(logging.INFO, ended, "done", "%s done in %.3f s", job, ended.seconds)
            self._events.send("job_done", job=job, seconds=ended.seconds)
        elif not ended.begun:
            # The job has not run yet. Its log line and its events follow when it has.
            self._log(logging.DEBUG, ended, "waiting", "%s waits for the run before it", job)
        elif outcome.state == "queued" and outcome.gives_back:
            self._log(logging.INFO, ended, "snoozed", "%s snoozed for %.1f s", job, outcome.delay or 0)
            self._events.send("job_snoozed", job=job, seconds=ended.seconds, delay=outcome.delay)
        elif outcome.state == "queued":
            self._retrying(ended)
        elif outcome.state == "cancelled":
            reason = str(outcome.error and outcome.error["error"])
            message_format = "%s was %s" if ended.error is None else "%s cancelled itself: %s"
            self._log(logging.INFO, ended, "cancelled", message_format, job, one_log_line(reason))
            self._events.send("job_cancelled", job=job, seconds=ended.seconds, reason=reason)
        else:
            self._failed(ended)

    def released(self, job: Job) -> None:
        logger.info("%s handed back", job, extra=fields(job, "released"))
        self._events.send("job_released", job=job)

    def rescued(self, job: Job) -> None:
        """Report a job that was reclaimed from a dead worker."""
        if job.state == "failed":
            logger.error("%s failed: %s", job, job.error, extra=fields(job, "failed"))
            self._events.send("job_failed", job=job, seconds=0.0, error=None)
        else:
            logger.warning("%s rescued from a dead worker, to be run isolated", job, extra=fields(job, "rescued"))
            self._events.send("job_rescued", job=job)

    def _retrying(self, ended: Ended) -> None:
        delay = ended.outcome.delay or 0.0
        self._log(
            logging.WARNING, ended, "retrying", "%s failed in %.3f s, again in %.1f s: %s",
            _text(ended), ended.seconds, delay, _error_line(ended),
        )
        self._events.send(
            "job_retrying", job=ended.job, seconds=ended.seconds, error=ended.error, delay=delay
        )

    def _failed(self, ended: Ended) -> None:
        self._log(
            logging.ERROR, ended, "failed", "%s failed for good in %.3f s: %s",
            _text(ended), ended.seconds, _error_line(ended),
        )
        self._events.send("job_failed", job=ended.job, seconds=ended.seconds, error=ended.error)

    def _lost(self, ended: Ended) -> None:
        self.lost += 1
        self._log(
            logging.WARNING, ended, "lost",
            "%s ended as %s after %.3f s, but was no longer this worker's; the outcome is dropped",
            ended.job, ended.outcome.state, ended.seconds,
        )
        self._events.send("job_lost", job=ended.job)

    def _log(self, level: int, ended: Ended, outcome: str, message: str, *args: Any) -> None:
        if not logger.isEnabledFor(level):
            return
        extra = fields(ended.job, outcome, ended.seconds)
        traceback = (ended.outcome.error or {}).get("traceback")
        if ended.error is None or traceback is None:
            logger.log(level, message, *args, extra=extra)
            return
        exc_info = type(ended.error), ended.error, ended.error.__traceback__
        record = logger.makeRecord(logger.name, level, __file__, 0, message, args, exc_info, "_log", extra)
        # Formatting the user's exception may raise, never end or fill the memory. The text in the job's row is safe and
        # bounded; handlers use it instead of formatting the exception themselves.
        record.exc_text = traceback.rstrip("\n")
        logger.handle(record)


def fields(job: Job, outcome: str, seconds: float | None = None) -> dict[str, Any]:
    """Return the fields for structured log formats. Dashboards depend on the names, so they do not change."""
    waited = (job.claimed_at - job.execute_after).total_seconds() if job.claimed_at else None
    return {
        "event": "job",
        "job_id": job.id,
        "task": job.task,
        "queue": job.queue,
        "attempt": job.attempt,
        "outcome": outcome,
        "duration_s": None if seconds is None else round(seconds, 6),
        "wait_s": None if waited is None else round(max(0.0, waited), 6),
    }


def one_log_line(text: str) -> str:
    """Return user text as one printable line: its line breaks and terminal codes must not forge log lines."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:500])


def _text(ended: Ended) -> str:
    return str(ended.job) if ended.limit is None else ended.job.text(ended.limit)


def _error_line(ended: Ended) -> str:
    return one_log_line(one_line(ended.error)) if ended.error is not None else "no error"
