"""Registration and heartbeats of workers, and the rescue of jobs that a dead worker held."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from ..job import Job, Look, WorkerCard
from .schedules_declarations import Declarations
from .tables import WorkerRow, error_entry, with_error


class Workers(Declarations):
    """Methods for heartbeats and reapers."""

    def register(self, card: WorkerCard, instead_of: uuid.UUID | None = None) -> None:
        with self._lock:
            now = self.now()
            for job in [j for j in self._running() if j.worker == instead_of]:
                self._keep(job.changed(worker=card.id))
            self._workers.setdefault(card.id, WorkerRow(card, now, now))

    def beat(self, worker: uuid.UUID, running: int = 0, idle_loop: float = 0.0, stopping: bool = False) -> bool:
        with self._lock:
            pulse = self._workers.get(worker)
            if pulse is None:
                return False
            pulse.beat += 1
            pulse.beat_at, pulse.running, pulse.idle_loop, pulse.stopping = self.now(), running, idle_loop, stopping
            return True

    def forget(self, worker: uuid.UUID) -> None:
        with self._lock:
            self._workers.pop(worker, None)

    def look(self, queues: Sequence[str], tasks: Sequence[str], worker: uuid.UUID | None = None) -> Look:
        with self._lock:
            first = next((j.execute_after for j in self._claimable(queues, tasks)), None)
            orphaned = {j.worker: -1 for j in self._running() if j.worker not in self._workers and j.worker}
            pulses = {**orphaned, **{worker: pulse.beat for worker, pulse in self._workers.items()}}
            now = self.now()
            due_in = None if first is None else (first - now).total_seconds()
            held = Counter(j.claim for j in self._running() if j.worker == worker and j.claim is not None)
            return Look(due_in, pulses, self._plan_in(now), self._is_watch_due(now), dict(held))

    def reap(self, silent: Iterable[tuple[uuid.UUID, int | None]]) -> list[Job]:
        with self._lock:
            dead = [worker for worker, beat in silent if self._remove_worker(worker, beat)]
            rescued = []
            for worker in dead:
                held = [j for j in self._running() if j.worker == worker]
                # Only the crash of a worker that ran this one job alone is counted for the job.
                rescued += [self._rescue(j, counts_crash=j.alone and len(held) == 1) for j in held]
            return sorted(rescued, key=lambda j: j.id)

    # The caller of the methods below holds the lock.

    def _is_watch_due(self, now: datetime) -> bool:
        return now >= self._next_watch(now) and any(row.retired_at is None for row in self._schedules.values())

    def _remove_worker(self, worker: uuid.UUID, beat: int | None) -> bool:
        """Delete the worker's row unless it has beaten since `beat`. Return True if its jobs are to be rescued."""
        pulse = self._workers.get(worker)
        if pulse is None:
            return beat in (-1, None)
        if beat not in (pulse.beat, None):
            return False
        del self._workers[worker]
        return True

    def _rescue(self, job: Job, *, counts_crash: bool) -> Job:
        crashes = job.crashes + counts_crash
        if counts_crash and crashes >= job.max_crashes:
            return self._fail(job, crashes)
        errors = job.errors
        if counts_crash:
            errors = with_error(errors, error_entry(job, self.now(), "the worker died while running this job"))
        return self._keep(
            job.changed(
                state="queued", claim=None, worker=None, claimed_at=None, attempt=job.attempt - 1, alone=True,
                crashes=crashes, errors=errors,
            )
        )

    def _fail(self, job: Job, crashes: int) -> Job:
        now = self.now()
        error = error_entry(job, now, f"the worker died {crashes} times while running this job alone")
        return self._end(
            job.changed(
                state="failed", crashes=crashes, alone=False, finished_at=now, errors=with_error(job.errors, error)
            )
        )
