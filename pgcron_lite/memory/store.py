"""The memory store: the same verbs as PostgreSQL's, on dictionaries and a lock. For tests and for trying things out.

It keeps nothing when the process ends. `tests/test_store.py` holds it to the contract, and a differential test drives
it beside the real one.
"""

from __future__ import annotations

import bisect
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..job import MAX_ERRORS, Job, Look, NewJob, Outcome, QueueView, State, WorkerCard, WorkerView
from .bell import MemoryBell
from .declarations import Declarations
from .planning import Planning
from .schedules import ScheduleDesk
from .tables import LATEST, Pulse
from .ticking import Ticking
from .travel import Travelling


class MemoryStore(Planning, Ticking, ScheduleDesk, Declarations, Travelling):
    """The queue in this process's memory."""

    schema = "memory"
    rings = True
    # There is no connection that could break or hang.
    generation = 1
    busy_seconds = 0.0

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self._bells: list[Callable[[], None]] = []

    # Enqueueing

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        with self._lock:
            ids = self._add(jobs)
        self.ring()
        return ids

    def ring(self) -> None:
        for bell in list(self._bells):
            bell()

    def open_bell(self, tell: Callable[[], None]) -> MemoryBell:
        """The doorbell as one worker hears it; `tell` ends that worker's sleep."""
        return MemoryBell(self._bells, tell)

    # Working

    def claim(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> list[Job]:
        with self._lock:
            now = self.now()
            due = [j for j in self._open(queues, tasks, now) if not j.alone]
            return [self._take(j, worker, claim, now) for j in sorted(due, key=_order)[:limit]]

    def claim_suspect(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str]
    ) -> Job | None:
        with self._lock:
            if not self._suspects:
                return None
            now = self.now()
            first = next((j for j in self._open(queues, tasks, now) if j.alone), None)
            return None if first is None else self._take(first, worker, claim, now)

    def held(self, worker: uuid.UUID, claim: uuid.UUID) -> list[Job]:
        with self._lock:
            return sorted((j for j in self._running() if j.worker == worker and j.claim == claim), key=_order)

    def next_due(self, queues: Sequence[str], tasks: Sequence[str]) -> float | None:
        with self._lock:
            now = self.now()
            later = (
                j.execute_after for j in self._queued(now, None)
                if j.alone or (j.task in tasks and _serves(queues, j.queue))
            )
            first = next(later, None)
            return None if first is None else (first - now).total_seconds()

    def suspects_due(self, queues: Sequence[str], tasks: Sequence[str]) -> bool:
        with self._lock:
            return bool(self._suspects) and any(j.alone for j in self._open(queues, tasks, self.now()))

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

    # Living and dying

    def register(self, card: WorkerCard, instead_of: uuid.UUID | None = None) -> None:
        with self._lock:
            now = self.now()
            for job in [j for j in self._running() if j.worker == instead_of]:
                self._keep(job.changed(worker=card.id))
            self._workers.setdefault(card.id, Pulse(card, now, now))

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

    def look(self, queues: Sequence[str], tasks: Sequence[str]) -> Look:
        with self._lock:
            first = next((j.execute_after for j in self._open(queues, tasks)), None)
            orphaned = {j.worker: -1 for j in self._running() if j.worker not in self._workers and j.worker}
            pulses = {**orphaned, **{worker: pulse.beat for worker, pulse in self._workers.items()}}
            now = self.now()
            due_in = None if first is None else (first - now).total_seconds()
            return Look(due_in, pulses, self._plan_in(now), self._ticks_want_watching(now))

    def reap(self, silent: Iterable[tuple[uuid.UUID, int | None]]) -> list[Job]:
        with self._lock:
            dead = [worker for worker, beat in silent if self._bury(worker, beat)]
            rescued = []
            for worker in dead:
                held = [j for j in self._running() if j.worker == worker]
                rescued += [self._rescue(j, guilty=j.alone and len(held) == 1) for j in held]
            return sorted(rescued, key=lambda j: j.id)

    # The operator's desk

    def get(self, job_id: int) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id) or self._history.get(job_id)

    def find(
        self,
        *,
        states: Sequence[str] = (),
        task: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        since: timedelta | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        with self._lock:
            now = self.now()
            found = [
                j
                for j in [*self._jobs.values(), *self._history.values()]
                if (not states or j.state in states)
                and task in (None, j.task)
                and queue in (None, j.queue)
                and (tag is None or tag in j.tags)
                and (since is None or j.created_at >= now - since)
                and (before is None or j.id < before)
            ]
            return sorted(found, key=lambda j: -j.id)[:limit]

    def cancel(self, job_id: int, reason: str = "cancelled by hand") -> bool:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.state != "queued":
                return False
            self._cancel(job, reason)
            return True

    def retry(self, job_id: int) -> bool:
        with self._lock:
            job = self._history.get(job_id)
            if job is None or job.state not in ("failed", "cancelled"):
                return False
            self._erase(job_id)
            self._keep(
                job.changed(
                    state="queued", attempt=0, crashes=0, alone=False, claim=None, worker=None, claimed_at=None,
                    execute_after=self.now(), finished_at=None, result=None,
                )
            )
            return True

    def delete(self, job_id: int) -> bool:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and job.state == "queued":
                self._drop(job_id)
                return True
            return self._erase(job_id)

    def clear(self, queue: str, limit: int = 1000) -> int:
        with self._lock:
            waiting = [j for j in self._jobs.values() if j.queue == queue and j.state == "queued"]
            for job in sorted(waiting, key=lambda j: j.id)[:limit]:
                self._cancel(job, "queue cleared")
            return min(len(waiting), limit)

    def pause(self, queue: str) -> None:
        with self._lock:
            self._paused.setdefault(queue, self.now())

    def resume(self, queue: str) -> bool:
        with self._lock:
            return self._paused.pop(queue, None) is not None

    def queues(self) -> list[QueueView]:
        with self._lock:
            now = self.now()
            names = sorted({j.queue for j in self._jobs.values()} | set(self._paused))
            return [self._view(name, now) for name in names]

    def workers(self) -> list[WorkerView]:
        with self._lock:
            now = self.now()
            return [
                WorkerView(
                    id=p.card.id, host=p.card.host, pid=p.card.pid, version=p.card.version, queues=p.card.queues,
                    slots=p.card.slots, mode=p.card.mode, running=p.running, stopping=p.stopping,
                    started_at=p.started_at, silent_seconds=max(0.0, (now - p.beat_at).total_seconds()),
                    idle_loop=p.idle_loop,
                )
                for p in sorted(self._workers.values(), key=lambda p: p.started_at)
            ]

    def waiting_tasks(self, queues: Sequence[str] = ("*",)) -> dict[str, int]:
        with self._lock:
            now = self.now()
            due = [
                j.task
                for j in self._jobs.values()
                if j.state == "queued" and j.execute_after <= now and _serves(queues, j.queue)
            ]
            return {task: due.count(task) for task in set(due)}

    def facts(self) -> dict[str, str]:
        return dict(self._facts)

    def note_fact(self, name: str, value: str) -> None:
        self._facts[name] = value

    def cut(self) -> None:
        """Nothing hangs here."""

    def check_schema(self) -> None:
        """There is none that could be missing."""

    def describe(self) -> str:
        return "in memory; nothing is kept when this process ends"

    def shrink(self, size: int) -> None:
        """It has no connections to save."""

    def close(self) -> None:
        """Nothing to close; what was enqueued stays until the process ends."""

    # What the verbs share; the lock is held.

    def _open(self, queues: Sequence[str], tasks: Sequence[str], until: datetime | None = None) -> Iterator[Job]:
        """Queued jobs that a worker of these queues and tasks may take, the first due first: all, or those due."""
        for job in self._queued(None, until):
            if job.task in tasks and _serves(queues, job.queue) and job.queue not in self._paused:
                yield job

    def _take(self, job: Job, worker: uuid.UUID, claim: uuid.UUID, now: datetime) -> Job:
        taken = job.changed(
            state="running", claim=claim, worker=worker, claimed_at=now, attempt=job.attempt + 1
        )
        return self._keep(taken)

    def _settle(self, outcome: Outcome) -> bool:
        job = self._jobs.get(outcome.id)
        if job is None or job.state != "running" or job.claim != outcome.claim:
            # Our own earlier write may have ended it.
            ended = self._history.get(outcome.id)
            return ended is not None and (ended.claim, ended.state) == (outcome.claim, outcome.state)
        errors = job.errors if outcome.error is None else _with_error(job.errors, dict(outcome.error))
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

    def _bury(self, worker: uuid.UUID, beat: int | None) -> bool:
        pulse = self._workers.get(worker)
        if pulse is None:
            return beat in (-1, None)
        if beat not in (pulse.beat, None):
            return False
        del self._workers[worker]
        return True

    def _ticks_want_watching(self, now: datetime) -> bool:
        return now >= self._next_watch(now) and any(row.retired_at is None for row in self._schedules.values())

    def _rescue(self, job: Job, *, guilty: bool) -> Job:
        crashes = job.crashes + guilty
        if guilty and crashes >= job.max_crashes:
            error = f"the worker died {crashes} times while running this job alone"
            dead = job.changed(
                state="failed", crashes=crashes, alone=False, finished_at=self.now(),
                errors=_with_error(job.errors, self._note(job, error)),
            )
            return self._end(dead)
        errors = job.errors
        if guilty:
            errors = _with_error(errors, self._note(job, "the worker died while running this job"))
        return self._keep(
            job.changed(
                state="queued", claim=None, worker=None, claimed_at=None, attempt=job.attempt - 1, alone=True,
                crashes=crashes, errors=errors,
            )
        )

    def _cancel(self, job: Job, reason: str) -> None:
        self._end(
            job.changed(
                state="cancelled", finished_at=self.now(), alone=False,
                errors=(*job.errors, self._note(job, reason)),
            )
        )

    def _note(self, job: Job, error: str) -> dict[str, Any]:
        return {"attempt": job.attempt, "at": self.now().isoformat(), "error": error}

    def _older(self, state: State, moment: datetime, limit: int) -> list[int]:
        ends = self._ends[state]
        return [job_id for _, job_id in ends[: min(limit, bisect.bisect_left(ends, (moment, 0)))]]

    def _erase(self, job_id: int) -> bool:
        """Take a job out of the history."""
        job = self._history.pop(job_id, None)
        if job is None:
            return False
        assert job.finished_at is not None
        ends = self._ends[job.state]
        del ends[bisect.bisect_left(ends, (job.finished_at, job_id))]
        return True

    def _view(self, name: str, now: datetime) -> QueueView:
        jobs = [j for j in self._jobs.values() if j.queue == name]
        due = [j for j in jobs if j.state == "queued" and j.execute_after <= now]
        oldest = min((j.execute_after for j in due), default=now)
        return QueueView(
            name=name,
            due=len(due),
            deferred=sum(j.state == "queued" and j.execute_after > now for j in jobs),
            running=sum(j.state == "running" for j in jobs),
            oldest_seconds=(now - oldest).total_seconds(),
            paused_at=self._paused.get(name),
        )


def _serves(queues: Sequence[str], queue: str) -> bool:
    return queue in queues or "*" in queues


def _order(job: Job) -> tuple[int, datetime, int]:
    return -job.priority, job.execute_after, job.id


def _with_error(errors: tuple[Any, ...], error: dict[str, Any]) -> tuple[Any, ...]:
    return (*errors[-(MAX_ERRORS - 1):], error)

