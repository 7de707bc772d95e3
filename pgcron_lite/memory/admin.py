"""Operator queries and actions on jobs, queues and workers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..errors import DatabaseRefused
from ..job import RUNNING_SHOWN, Job, QueueView, WorkerView
from .schedules_ticks import SchedulesTicks
from .tables import error_entry, serves


class Admin(SchedulesTicks):
    """Methods for operators."""

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
        with_payload: bool = True,
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
            newest = sorted(found, key=lambda j: -j.id)[:limit]
            return newest if with_payload else [j.changed(args="{}", headers={}, result=None) for j in newest]

    def cancel(self, job_id: int, reason: str = "cancelled by hand") -> bool:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.state != "queued":
                return False
            self._cancel(job, reason)
            self._close_unbegun([job_id])
            return True

    def retry(self, job_id: int) -> bool:
        with self._lock:
            job = self._history.get(job_id)
            if job is None or job.state not in ("failed", "cancelled"):
                return False
            if job_id in self._jobs:
                raise DatabaseRefused(
                    f"job {job_id} cannot be retried now: another job that has not ended has the same id"
                )
            self._erase(job_id)
            self._reopen(job)
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
            if job is None:
                return self._erase(job_id)
            if job.state != "queued":
                return False
            self._drop(job_id)
            self._close_unbegun([job_id])
            return True

    def clear(self, queue: str, limit: int = 1000) -> int:
        with self._lock:
            waiting = [j for j in self._jobs.values() if j.queue == queue and j.state == "queued"]
            cleared = sorted(waiting, key=lambda j: j.id)[:limit]
            for job in cleared:
                self._cancel(job, "queue cleared")
            self._close_unbegun([job.id for job in cleared])
            return len(cleared)

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
            return [self._queue_view(name, now) for name in names]

    def workers(self) -> list[WorkerView]:
        with self._lock:
            now = self.now()
            return [
                WorkerView(
                    id=p.card.id, host=p.card.host, pid=p.card.pid, version=p.card.version, queues=p.card.queues,
                    slots=p.card.slots, mode=p.card.mode, running=p.running, stopping=p.stopping,
                    started_at=p.started_at, silent_seconds=max(0.0, (now - p.beat_at).total_seconds()),
                    idle_loop=p.idle_loop, jobs=self._run_by(p.card.id),
                )
                for p in sorted(self._workers.values(), key=lambda p: p.started_at)
            ]

    def waiting_tasks(self, queues: Sequence[str] = ("*",)) -> dict[str, int]:
        with self._lock:
            now = self.now()
            due = [
                j.task
                for j in self._jobs.values()
                if j.state == "queued" and j.execute_after <= now and serves(queues, j.queue)
            ]
            return {task: due.count(task) for task in set(due)}

    def facts(self) -> dict[str, str]:
        return dict(self._facts)

    def note_fact(self, name: str, value: str) -> None:
        self._facts[name] = value

    # The caller of the methods below holds the lock.

    def _run_by(self, worker: uuid.UUID) -> tuple[tuple[int, str], ...]:
        """Return the longest-running jobs of `worker`, as (id, task)."""
        running = [(j.claimed_at, j.id, j.task) for j in self._jobs.values() if j.worker == worker and j.claimed_at]
        return tuple((job_id, task) for _, job_id, task in sorted(running)[:RUNNING_SHOWN])

    def _close_unbegun(self, job_ids: Sequence[int]) -> None:
        """Record in the ticks of these jobs that their runs will not begin, and release the runs that waited."""
        self.close_ticks(job_ids, unbegun=True)
        self.release(job_ids)

    def _cancel(self, job: Job, reason: str) -> None:
        now = self.now()
        errors = (*job.errors, error_entry(job, now, reason))
        self._end(job.changed(state="cancelled", finished_at=now, alone=False, errors=errors))

    def _queue_view(self, name: str, now: datetime) -> QueueView:
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
