"""Enqueueing, claiming and settling jobs in memory, and the doorbell."""

from __future__ import annotations

import bisect
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from ..job import Job, NewJob, Outcome, PipelineReply, State
from .tables import LATEST, Tables, serves, with_error


class Enqueueing(Tables):
    """Methods for producers, and the doorbell."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self._bells: list[Callable[[], None]] = []

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        with self._lock:
            ids = self._add(jobs)
        self.ring()
        return ids

    def ring(self) -> None:
        for bell in list(self._bells):
            bell()

    def open_bell(self, wake: Callable[[], None]) -> MemoryBell:
        """Return one worker's end of the doorbell; `wake` ends that worker's sleep."""
        return MemoryBell(self._bells, wake)


class Claiming(Tables):
    """Methods that claim jobs."""

    def claim(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> list[Job]:
        with self._lock:
            now = self.now()
            due = [j for j in self._claimable(queues, tasks, now) if not j.alone]
            return [self._take(j, worker, claim, now) for j in sorted(due, key=_order)[:limit]]

    def claim_suspect(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str]
    ) -> Job | None:
        with self._lock:
            if not self._suspects:
                return None
            now = self.now()
            first = next((j for j in self._claimable(queues, tasks, now) if j.alone), None)
            return None if first is None else self._take(first, worker, claim, now)

    def held(self, worker: uuid.UUID, claim: uuid.UUID) -> list[Job]:
        with self._lock:
            return sorted((j for j in self._running() if j.worker == worker and j.claim == claim), key=_order)

    def start_over(self) -> None:
        """Let the next claim search the whole queue. In memory every claim does."""

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
            return bool(self._suspects) and any(j.alone for j in self._claimable(queues, tasks, self.now()))

    def _take(self, job: Job, worker: uuid.UUID, claim: uuid.UUID, now: datetime) -> Job:
        taken = job.changed(
            state="running", claim=claim, worker=worker, claimed_at=now, attempt=job.attempt + 1
        )
        return self._keep(taken)


def _order(job: Job) -> tuple[int, datetime, int]:
    return -job.priority, job.execute_after, job.id


class Settling(Tables):
    """Methods that end a claim, and `prune`, which deletes old history."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        with self._lock:
            # A claim ends once: the first of two outcomes for it counts.
            once = {(o.id, o.claim): o for o in reversed(outcomes)}
            return {o.id for o in once.values() if self._settle(o)}

    def complete(self, job_id: int, claim: uuid.UUID, result: str | None) -> bool:
        """Complete a running job from within its task. Return False if `claim` no longer holds it."""
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

    # The caller of the methods below holds the lock.

    def _settle(self, outcome: Outcome) -> bool:
        job = self._jobs.get(outcome.id)
        if job is None or job.state != "running" or job.claim != outcome.claim:
            # An earlier write of this outcome may already have ended the job, or queued it again.
            ended = self._history.get(outcome.id)
            if outcome.state == "queued":
                now = job or ended
                return now is not None and outcome.error is not None and dict(outcome.error) in now.errors
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

    def _older(self, state: State, time: datetime, limit: int) -> list[int]:
        ends = self._ends[state]
        return [job_id for _, job_id in ends[: min(limit, bisect.bisect_left(ends, (time, 0)))]]


class Pipelining(Claiming, Settling):
    """The pipelined settle and claim, for workers with short jobs."""

    @contextmanager
    def settle_and_claim(
        self,
        outcomes: Sequence[Outcome],
        worker: uuid.UUID,
        claim: uuid.UUID,
        queues: Sequence[str],
        tasks: Sequence[str],
        limit: int,
    ) -> Iterator[PipelineReply]:
        reply = PipelineReply()
        yield reply
        reply.settled = self.settle(outcomes)
        jobs = self.claim(worker, claim, queues, tasks, limit)
        reply.count, reply.jobs = len(jobs), lambda: jobs


class MemoryBell:
    """A doorbell within one process. A ring ends the worker's sleep."""

    is_live = True
    busy_seconds = 0.0

    def __init__(self, bells: list[Callable[[], None]], wake: Callable[[], None]) -> None:
        self._bells = bells
        self._wake = wake
        self._rung = True
        bells.append(self._ring)

    def fileno(self) -> int | None:
        return None

    def step(self) -> tuple[bool, float]:
        rung, self._rung = self._rung, False
        return rung, 3600.0

    def cut(self) -> None:
        """Do nothing: no statement can hang."""

    def rest(self, seconds: float) -> None:
        """Do nothing: there is no connection to lend."""

    def close(self) -> None:
        self._bells.remove(self._ring)

    def _ring(self) -> None:
        self._rung = True
        self._wake()
