"""Ending jobs: what became of a claimed job, written by its owner alone."""

from __future__ import annotations

import bisect
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from ..job import Job, Outcome, State
from .tables import LATEST, Tables, with_error


class Settling(Tables):
    """The verbs that end a claim, and the one that forgets what ended long ago."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        with self._lock:
            # A claim ends once: of two outcomes for it the first counts.
            once = {(o.id, o.claim): o for o in reversed(outcomes)}
            return {o.id for o in once.values() if self._settle(o)}

    def complete(self, job_id: int, claim: uuid.UUID, result: str | None) -> bool:
        """End a running job from within its task."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.state != "running" or job.claim != claim:
                return False
            return self._settle(Outcome(job_id, claim, "done", result=result))

    def prune(self, done_after: timedelta, failed_after: timedelta, limit: int = 1000) -> int:
        with self._lock:
            now = self.now()
            kept: dict[State, timedelta] = {"done": done_after, "failed": failed_after, "cancelled": failed_after}
            old = [job_id for state, span in kept.items() for job_id in self._older(state, now - span, limit)][:limit]
            for job_id in old:
                self._erase(job_id)
            return len(old)

    # The lock is held.

    def _settle(self, outcome: Outcome) -> bool:
        job = self._jobs.get(outcome.id)
        if job is None or job.state != "running" or job.claim != outcome.claim:
            # Our own earlier write may have ended it.
            ended = self._history.get(outcome.id)
            return ended is not None and (ended.claim, ended.state) == (outcome.claim, outcome.state)
        errors = job.errors if outcome.error is None else with_error(job.errors, dict(outcome.error))
        if outcome.state == "queued":
            self._keep(self._requeued(job, outcome, errors))
        else:
            self._end(
                job.changed(
                    state=outcome.state, errors=errors, finished_at=self.now(), result=outcome.result, alone=False
                )
            )
        return True

    def _requeued(self, job: Job, outcome: Outcome, errors: tuple[Any, ...]) -> Job:
        due = job.execute_after
        if outcome.delay is not None:
            due = min(self.now() + timedelta(seconds=min(outcome.delay, 2.3e11)), LATEST)
        return job.changed(
            state="queued", claim=None, worker=None, claimed_at=None, execute_after=due, errors=errors,
            attempt=job.attempt - outcome.gives_back, alone=job.alone and outcome.gives_back,
        )

    def _older(self, state: State, moment: datetime, limit: int) -> list[int]:
        ends = self._ends[state]
        return [job_id for _, job_id in ends[: min(limit, bisect.bisect_left(ends, (moment, 0)))]]
