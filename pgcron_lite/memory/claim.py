"""Taking jobs: the claim, the suspects, and how long until there is something to take."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from ..job import Job
from .tables import Tables, serves


class Claiming(Tables):
    """The verbs of a worker that looks for work."""

    def claim(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> list[Job]:
        with self._lock:
            now = self.now()
            due = [j for j in self._offered(queues, tasks, now) if not j.alone]
            return [self._take(j, worker, claim, now) for j in sorted(due, key=_order)[:limit]]

    def claim_suspect(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str]
    ) -> Job | None:
        with self._lock:
            if not self._suspects:
                return None
            now = self.now()
            first = next((j for j in self._offered(queues, tasks, now) if j.alone), None)
            return None if first is None else self._take(first, worker, claim, now)

    def held(self, worker: uuid.UUID, claim: uuid.UUID) -> list[Job]:
        with self._lock:
            return sorted((j for j in self._running() if j.worker == worker and j.claim == claim), key=_order)

    def start_over(self) -> None:
        """The next claim looks at everything. Here every claim does."""

    def next_due(self, queues: Sequence[str], tasks: Sequence[str]) -> float | None:
        with self._lock:
            now = self.now()
            later = (
                j.execute_after for j in self._queued(now, None)
                if j.alone or (j.task in tasks and serves(queues, j.queue))
            )
            first = next(later, None)
            return None if first is None else (first - now).total_seconds()

    def suspects_due(self, queues: Sequence[str], tasks: Sequence[str]) -> bool:
        with self._lock:
            return bool(self._suspects) and any(j.alone for j in self._offered(queues, tasks, self.now()))

    def _take(self, job: Job, worker: uuid.UUID, claim: uuid.UUID, now: datetime) -> Job:
        taken = job.changed(
            state="running", claim=claim, worker=worker, claimed_at=now, attempt=job.attempt + 1
        )
        return self._keep(taken)


def _order(job: Job) -> tuple[int, datetime, int]:
    return -job.priority, job.execute_after, job.id
